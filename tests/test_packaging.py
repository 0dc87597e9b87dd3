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

import pytest

import t2v_edge
from t2v_edge.device.profile import list_profiles, tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {
    "t2v_edge": ROOT / "t2v_edge",
    "t2v_export": ROOT / "export/t2v_export",
    "t2v_calibration": ROOT / "calibration/t2v_calibration",
}

NEVER_IN_RUNTIME = {"torch", "transformers", "nncf", "onnx", "onnx_ir", "onnxscript", "safetensors"}


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
        yield ".".join((package, *(p for p in parts if p != "__init__"))), path


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
        "import t2v_edge.device.profile as d, t2v_calibration.captions as c; print(d.__file__);"
        "print(*d.list_profiles());"
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
