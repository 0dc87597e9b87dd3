"""Commands of the toolchain, a package of its own with its own needs: ``export``, ``compress`` and ``compare``."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from t2v_edge.errors import UsageError

# The command's module in the toolchain, and what it does in a few words.
COMMANDS = {
    "export": ("t2v_export.commands.export", "turn a checkpoint into a bundle"),
    "compress": ("t2v_export.commands.compress", "make a smaller checkpoint of a checkpoint"),
    "compare": ("t2v_export.commands.compare", "measure how near every variant of a bundle is to its FP32"),
}


def add_parser(subparsers: Any, name: str, wanted: bool) -> None:
    """Add a command; its arguments are the toolchain's, which is imported only where they are `wanted`."""
    module, help_text = COMMANDS[name]
    parser = subparsers.add_parser(
        name,
        help=f"{help_text} (needs t2v-edge[export])",
        description=f"{help_text.capitalize()}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: _run(name, module, args))
    if wanted:
        _import(name, module).add_arguments(parser)


def _import(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{name} needs the toolchain and Python 3.10 or later: pip install 't2v-edge[export]' ({error})"
        ) from error


def _run(name: str, module: str, args: argparse.Namespace) -> int:
    command = _import(name, module)
    try:
        return int(command.run(args))
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs the toolchain: pip install 't2v-edge[export]' ({error})") from error
