"""The door to commands of the toolchain, a package of its own with its own needs: imported where it is asked for."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any

from t2v_edge.errors import UsageError

REMEDY = "needs the toolchain and Python 3.10 or later: pip install 't2v-edge[export]'"


def add_command(subparsers: Any, name: str, module: str, says: str, wanted: bool) -> None:
    """Add the command `name`, which `module` of the toolchain describes (`add_arguments`) and does (`run`).

    Its arguments are known, and the module imported, only where they are `wanted`. Raises `UsageError` with the
    remedy where it cannot be.
    """
    parser = subparsers.add_parser(
        name, help=f"{says} (needs t2v-edge[export])", description=f"{says[0].upper()}{says[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=partial(_run, name, module))
    if not wanted:
        return
    try:
        command = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{name} {REMEDY} ({error})") from error
    command.add_arguments(parser)


def _run(name: str, module: str, args: argparse.Namespace) -> int:
    try:
        return int(importlib.import_module(module).run(args))
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} {REMEDY} ({error})") from error
