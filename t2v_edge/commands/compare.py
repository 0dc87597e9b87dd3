"""``t2v-edge compare``: hands over to the toolchain."""

from __future__ import annotations

from typing import Any

from t2v_edge.commands.toolchain import add_command


def add_parser(subparsers: Any, wanted: bool) -> None:
    """Add the command; its arguments are read only where they are `wanted`."""
    says = "measure how near every variant of a bundle is to its FP32"
    add_command(subparsers, "compare", "t2v_export.compare.command", says, wanted)
