"""``t2v-edge export``: hands over to the toolchain, which is a package of its own with its own needs."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from t2v_edge.errors import UsageError

REMEDY = "exporting needs the toolchain and Python 3.10 or later: pip install 't2v-edge[export]'"


def add_parser(subparsers: Any, wanted: bool) -> None:
    """Add the command; its arguments are the toolchain's, which is imported only where they are `wanted`."""
    parser = subparsers.add_parser(
        "export", help="turn a checkpoint into a bundle (needs t2v-edge[export])",
        description="Turn a trained checkpoint into a bundle.", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    if not wanted:
        return
    try:
        command = importlib.import_module("t2v_export.command")
    except ImportError as error:
        raise UsageError(f"{REMEDY} ({error})") from error
    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    try:
        command = importlib.import_module("t2v_export.command")
        return int(command.run(args))
    except ModuleNotFoundError as error:
        raise UsageError(f"{REMEDY} ({error})") from error
