"""What each command imports before it runs, in a fresh interpreter."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import t2v_edge
from t2v_edge.commands import COMMANDS
from t2v_edge.commands.arguments import BUILT, ENGINES, LOADED
from t2v_edge.engine import registry

ROOT = Path(t2v_edge.__file__).parents[1]
HEAVY = set(
    "numpy tokenizers onnxruntime openvino cv2 av asyncio websockets cuda tensorrt torch transformers onnx onnxscript "
    "scipy tqdm".split()
)
CODE = """
import sys
from t2v_edge.cli import main
try:
    main(sys.argv[1:])
finally:
    sys.stderr.write(" ".join(sys.modules))
"""


def modules_after(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("", "export", "calibration"))}
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_without_a_command_no_command_is_imported(argument):
    ours = {name for name in modules_after(argument) if name.startswith("t2v_")}
    assert ours == {"t2v_edge", "t2v_edge.cli", "t2v_edge.commands", "t2v_edge.errors"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_of_a_command_imports_that_command_and_nothing_heavy(command):
    if command.module.startswith("t2v_export.") and find_spec("t2v_export") is None:
        pytest.skip("the toolchain is not installed")
    found = modules_after(command.name, "--help")
    assert command.module in found
    assert not {other.module for other in COMMANDS.values()} & found - {command.module}
    assert not HEAVY & {name.split(".")[0] for name in found}


def test_every_command_has_a_line_and_what_it_needs_in_the_help(capsys):
    with pytest.raises(SystemExit):
        import_module("t2v_edge.cli").main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS.values():
        assert f"{command.name} {command.line}" in shown
    assert COMMANDS["serve"].line.endswith("(needs t2v-edge[serve])")


@pytest.mark.parametrize("name", [name for name, c in COMMANDS.items() if c.module.startswith("t2v_edge.")])
def test_a_command_has_the_parts_that_the_command_line_uses(name):
    module = import_module(COMMANDS[name].module)
    module.add_arguments(argparse.ArgumentParser())
    assert callable(module.run) and module.DESCRIPTION
    assert f"  t2v-edge {name}" in module.EXAMPLES


def test_names_of_engines_are_those_of_the_registry():
    assert (LOADED, BUILT) == (tuple(registry.ENGINES), registry.BUILT)
    assert ENGINES == (registry.AUTO, *LOADED, *BUILT)


def test_public_names_load_on_first_use_and_are_listed():
    assert set(t2v_edge.__all__) <= set(dir(t2v_edge))
    for name in t2v_edge.__all__:
        assert getattr(t2v_edge, name).__name__ == name
    assert t2v_edge.errors.T2VError is t2v_edge.T2VError
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        t2v_edge.Pipelines  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys, t2v_edge; print(*(m for m in sys.modules if m.startswith('t2v_edge.') or m == 'numpy'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "", done.stderr
