"""``t2v-edge export``: hands over to the toolchain."""

from __future__ import annotations

from typing import Any

from t2v_edge.commands.toolchain import add_command


def add_parser(subparsers: Any, wanted: bool) -> None:
    """Add the command; its arguments are read only where they are `wanted`."""
    add_command(subparsers, "export", "t2v_export.command", "turn a checkpoint into a bundle", wanted)
