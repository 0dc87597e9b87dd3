"""``t2v-edge compare``: hands over to the toolchain, which is a package of its own with its own needs."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from t2v_edge.errors import UsageError

MODULE = "t2v_export.compare.command"
REMEDY = "comparing needs the toolchain and Python 3.10 or later: pip install 't2v-edge[export]'"


def add_parser(subparsers: Any, wanted: bool) -> None:
    """Add the command; its arguments are the toolchain's, which is imported only where they are `wanted`."""
    parser = subparsers.add_parser(
        "compare", help="measure every variant against FP32 (needs t2v-edge[export])",
        description="Measure how near every variant of a bundle is to its FP32.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    if not wanted:
        return
    try:
        command = importlib.import_module(MODULE)
    except ImportError as error:
        raise UsageError(f"{REMEDY} ({error})") from error
    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    try:
        command = importlib.import_module(MODULE)
        return int(command.run(args))
    except ModuleNotFoundError as error:
        raise UsageError(f"{REMEDY} ({error})") from error
