"""What is promised of the package as a whole: its metadata, its Python, and which way imports run."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import t2v_edge
from t2v_edge.device import list_profiles, tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {
    "t2v_edge": ROOT / "t2v_edge",
    "t2v_export": ROOT / "export/t2v_export",
    "t2v_calibration": ROOT / "calibration/t2v_calibration",
}

# Modules of t2v_edge by layer, low to high: a module imports from its own layer and those below.
LAYERS = (
    ("errors",),
    (
        "spec",
        "frame",
        "device",
        "files",
        "strict_json",
        "onnx_lite",
        "clock",
        "draws",
        "timing",
        "resize",
        "machine",
        "cache",
        "jetpack",
        "memory",
        "pace",
        "power",
        "wording",
        "fields",
        "protocol",
        "pacer",
        "quality",
        "waiting",
    ),
    ("bundle", "archive", "manifest", "tokenizer", "roofline"),
    ("engine", "choice", "golden", "system", "checks", "captions", "cues", "sources", "asr"),
    (
        "rollout",
        "stream",
        "live",
        "live_core",
        "live_maker",
        "live_options",
        "live_stats",
        "player",
        "proof",
        "build",
        "build_report",
    ),
    ("pipeline",),
    (
        "sinks",
        "report",
        "trial",
        "doctor",
        "bench",
        "bench_report",
        "server",
        "async_client",
        "client",
        "bench_live",
        "bench_live_client",
        "bench_live_foes",
        "bench_live_record",
        "bench_live_report",
        "bench_live_script",
        "bench_live_server",
    ),
    ("cli", "commands", "__main__"),
)
LAYER_OF = {name: height for height, names in enumerate(LAYERS) for name in names}
DOORS = {"cli", "commands"}
NEVER_IN_RUNTIME = {"torch", "transformers", "nncf", "onnx", "onnxscript", "safetensors"}


class Import(NamedTuple):
    """One import: the module that makes it, what it names, and whether it runs when that module is imported."""

    importer: str
    target: str
    at_import: bool
    place: str


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
        yield ".".join((package, *(p for p in parts if p != "__init__"))), path


def imports_of(package: str) -> Iterator[Import]:
    for module, path in modules_of(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        is_package = path.name == "__init__.py"
        yield from _imports(tree, module, is_package, True, path.relative_to(ROOT).as_posix())


def _imports(node: ast.AST, module: str, is_package: bool, at_import: bool, file: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        )
        place = f"{file}:{getattr(child, 'lineno', 0)}"
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, at_import, place)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = module.split(".")
                anchor = parts[: len(parts) - child.level + is_package]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in child.names:
                yield Import(module, f"{base}.{alias.name}", at_import, place)
        else:
            yield from _imports(child, module, is_package, at_import and not lazy, file)


def layer_of(target: str) -> int | None:
    """Height of a t2v_edge module's layer; None for the package itself and for names that are no module."""
    parts = target.split(".")
    if len(parts) < 2 or not ((ROOT / "t2v_edge" / parts[1]).is_dir() or (ROOT / f"t2v_edge/{parts[1]}.py").is_file()):
        return None
    return LAYER_OF[parts[1]]


def test_every_module_of_the_runtime_has_a_layer() -> None:
    unknown = {module.split(".")[1] for module, _ in modules_of("t2v_edge") if "." in module} - set(LAYER_OF)
    assert not unknown, f"give {sorted(unknown)} a place in LAYERS and in the design"


def test_runtime_imports_run_one_way() -> None:
    found = list(imports_of("t2v_edge"))
    assert len(found) > 20
    wrong = []
    for item in found:
        mine, theirs = layer_of(item.importer), layer_of(item.target)
        if not item.at_import or not item.target.startswith("t2v_edge.") or mine is None:
            continue
        if theirs is None or theirs > mine:
            wrong.append(f"{item.place}: {item.importer} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def test_packages_import_only_those_below_them() -> None:
    allowed = {
        "t2v_edge": {"t2v_edge"},
        "t2v_calibration": {"t2v_edge", "t2v_calibration"},
        "t2v_export": set(PACKAGES),
    }
    wrong = []
    for package in PACKAGES:
        for item in imports_of(package):
            root = item.target.split(".")[0]
            if root in PACKAGES and root not in allowed[package]:
                door = package == "t2v_edge" and item.importer.split(".")[1:2] and item.importer.split(".")[1] in DOORS
                if item.at_import or root != "t2v_export" or not door:
                    wrong.append(f"{item.place}: {item.importer} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def test_runtime_names_no_toolchain_library_even_lazily() -> None:
    wrong = [
        f"{item.place}: {item.target}"
        for item in imports_of("t2v_edge")
        if item.target.split(".")[0] in NEVER_IN_RUNTIME
    ]
    assert not wrong, "\n".join(wrong)


def test_import_rules_see_relative_lazy_and_wrong_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse("from . import cli\ndef f():\n    from .engine import x\nif TYPE_CHECKING:\n    import torch\n")
    found = [(i.target, i.at_import) for i in _imports(tree, "t2v_edge.spec", False, True, "spec.py")]
    assert found == [("t2v_edge.cli", True), ("t2v_edge.engine.x", False), ("torch", False)]
    inner = [i.target for i in _imports(ast.parse("from .base import Engine"), "t2v_edge.engine", True, True, "")]
    assert inner == ["t2v_edge.engine.base.Engine"]


@pytest.mark.parametrize("path", sorted(PACKAGES["t2v_edge"].rglob("*.py")), ids=lambda p: p.stem)
def test_runtime_module_is_python_3_9(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    newer = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            banned = {"zip": {"strict"}, "dataclass": {"slots", "kw_only"}}.get(name, set())
            newer += [f"line {node.lineno}: {name}({k.arg}=)" for k in node.keywords if k.arg in banned]
    assert not newer
    annotated = any(isinstance(n, (ast.AnnAssign, ast.arg, ast.FunctionDef)) for n in ast.walk(tree))
    assert not annotated or "from __future__ import annotations" in source


def test_version_is_said_once_and_is_in_the_changelog() -> None:
    version = PROJECT["project"]["version"]
    assert t2v_edge.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_entry_point_can_be_called() -> None:
    module, _, function = PROJECT["project"]["scripts"]["t2v-edge"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_runtime_is_marked_as_typed() -> None:
    assert (ROOT / "t2v_edge/py.typed").is_file()


def test_everything_the_wheel_is_made_of_is_there() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) == {str(path.relative_to(ROOT)) for path in PACKAGES.values()}
    for source in (*wheel["packages"], *wheel["force-include"], *PROJECT["project"]["license-files"]):
        assert (ROOT / source).exists(), source
    assert all((ROOT / source).is_file() for source in ("README.md", "CONTRIBUTING.md", "docs/formats.md"))


def test_core_and_cpu_requirements_leave_the_toolchain_out() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    light = project["dependencies"] + extras["cpu"] + extras["video"]
    names = {re.split(r"[<>=; \[]", requirement)[0].lower() for requirement in light}
    assert not names & (NEVER_IN_RUNTIME | {"scipy", "matplotlib"})


def test_profiles_and_captions_load_from_the_layout_of_an_installed_wheel(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("t2v_edge", "t2v_calibration"):
        shutil.copytree(PACKAGES[package], tmp_path / package, ignore=ignore)
    for source, target in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / target, ignore=ignore, dirs_exist_ok=True)
    code = (
        "import t2v_edge.device as d, t2v_calibration.captions as c; print(d.__file__); print(*d.list_profiles());"
        "print(len(c.load_captions('en')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, names, captions = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert tuple(names.split()) == list_profiles()
    assert int(captions) >= 100


def test_the_page_loads_from_the_layout_of_an_installed_wheel(tmp_path: Path) -> None:
    shutil.copytree(PACKAGES["t2v_edge"], tmp_path / "t2v_edge", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import t2v_edge.server.pages as p; p.Pages(); print(p.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    names = [path.name for path in (ROOT / "t2v_edge/web").iterdir()]
    assert not set(names) & {pattern.rstrip("/") for pattern in ignored}, "what git ignores is not in the wheel"


def test_no_file_of_the_packages_is_past_400_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {count}"
        for package in PACKAGES
        for _, path in modules_of(package)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    ]
    assert not long, "\n".join(long)
