"""Which way imports run: the rooms of each package from top to bottom, and no circle among files.

Every import counts: those inside functions and those for types alone as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_packaging import NEVER_IN_RUNTIME, PACKAGES, ROOT, modules_of

# The rooms of a package, folders and single files, top to bottom: a room imports from those below it alone.
ROOMS = {
    "t2v_edge": (
        "__main__ cli commands __init__ bench server pipeline live asr cues sources client doctor remote play device "
        "captions engine bundle sinks util frame spec errors"
    ).split(),
    "t2v_export": (
        "commands fake_quant compare exporter compress quantize evaluate verify precision graph checkpoint models "
        "weights recipe store errors __init__"
    ).split(),
    "t2v_calibration": "__init__ ranges calibration_set captions".split(),
}
BELOW = {
    "t2v_edge": {"t2v_edge"},
    "t2v_calibration": {"t2v_edge", "t2v_calibration"},
    "t2v_export": {"t2v_edge", "t2v_calibration", "t2v_export"},
}
# The table of commands, some of which are modules of the toolchain.
DOOR = "t2v_edge.commands"
MOST_AT_THE_TOP = 12


class Import(NamedTuple):
    """One import: the module that makes it, what it names, and where."""

    importer: str
    target: str
    place: str


def imports_of(package: str) -> Iterator[Import]:
    for module, path in modules_of(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from imports_in(tree, module, path.name == "__init__.py", path.relative_to(ROOT).as_posix())


def imports_in(tree: ast.AST, module: str, is_package: bool, file: str) -> Iterator[Import]:
    for node in ast.walk(tree):
        place = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, place)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                anchor = parts[: len(parts) - node.level + is_package]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in node.names:
                yield Import(module, f"{base}.{alias.name}", place)


def room_of(name: str, package: str) -> str:
    """The room of a module or of a name in it; a package's own names are in its `__init__`."""
    word = name.split(".")[1] if "." in name else "__init__"
    return word if word in ROOMS[package] else "__init__"


def upward(package: str, found: Iterator[Import]) -> list[str]:
    height = {room: -index for index, room in enumerate(ROOMS[package])}
    return [
        f"{item.place}: {item.importer} imports {item.target}"
        for item in found
        if item.target.split(".")[0] == package
        and height[room_of(item.target, package)] > height[room_of(item.importer, package)]
    ]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Circles of a graph, each as the names on it, found from every name once."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                walk(target, [*way, name])
            done.add(name)

    for name in sorted(edges):
        walk(name, [])
    return found


def edges_of(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports."""
    modules = {name for name, _ in modules_of(package)}
    edges: dict[str, set[str]] = {}
    for item in imports_of(package):
        target = item.target if item.target in modules else item.target.rpartition(".")[0]
        if target in modules and target != item.importer:
            edges.setdefault(item.importer, set()).add(target)
    return edges


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_room(package: str) -> None:
    unknown = {name.split(".")[1] for name, _ in modules_of(package) if "." in name} - set(ROOMS[package])
    assert not unknown, f"give {sorted(unknown)} a place in ROOMS and in docs/architecture.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards(package: str) -> None:
    found = list(imports_of(package))
    assert len(found) > 10
    wrong = upward(package, iter(found))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other_in_a_circle(package: str) -> None:
    edges = edges_of(package)
    assert edges
    assert not circles(edges)


def test_packages_import_only_those_below_them() -> None:
    wrong = []
    for package in PACKAGES:
        for item in imports_of(package):
            root = item.target.split(".")[0]
            if root in PACKAGES and root not in BELOW[package]:
                wrong.append(f"{item.place}: {item.importer} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def test_only_the_table_of_commands_names_the_toolchain() -> None:
    found = [name for name, path in modules_of("t2v_edge") if '"t2v_export.' in path.read_text(encoding="utf-8")]
    assert found == [DOOR]


def test_runtime_names_no_toolchain_library_even_lazily() -> None:
    wrong = [
        f"{item.place}: {item.target}"
        for item in imports_of("t2v_edge")
        if item.target.split(".")[0] in NEVER_IN_RUNTIME
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_few_modules_lie_at_the_top(package: str) -> None:
    top = sorted(path.name for path in PACKAGES[package].glob("*.py"))
    assert 1 <= len(top) <= MOST_AT_THE_TOP, top


def test_rules_see_relative_lazy_and_typed_imports() -> None:
    code = "from . import cli\ndef f():\n    from .engine import x\nif TYPE_CHECKING:\n    import t2v_edge.pipeline\n"
    found = list(imports_in(ast.parse(code), "t2v_edge.spec", False, "spec.py"))
    assert {item.target for item in found} == {"t2v_edge.cli", "t2v_edge.pipeline", "t2v_edge.engine.x"}
    assert len(upward("t2v_edge", iter(found))) == 3
    inner = imports_in(ast.parse("from .base import Engine"), "t2v_edge.engine", True, "")
    assert [item.target for item in inner] == ["t2v_edge.engine.base.Engine"]


def test_rules_see_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}}) == [["b", "c", "b"]]


def test_rules_hold_for_a_copy_with_one_import_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "t2v_edge"
    (folder / "util").mkdir(parents=True)
    (folder / "pipeline.py").write_text("from t2v_edge.util import files\n")
    (folder / "util/files.py").write_text("import json\n")
    monkeypatch.setitem(PACKAGES, "t2v_edge", folder)
    monkeypatch.setattr("tests.test_layers.ROOT", tmp_path)
    assert not upward("t2v_edge", imports_of("t2v_edge"))
    assert not circles(edges_of("t2v_edge"))
    (folder / "util/files.py").write_text("if TYPE_CHECKING:\n    from t2v_edge.pipeline import Pipeline\n")
    assert upward("t2v_edge", imports_of("t2v_edge"))
    assert circles(edges_of("t2v_edge")) == [["t2v_edge.pipeline", "t2v_edge.util.files", "t2v_edge.pipeline"]]
