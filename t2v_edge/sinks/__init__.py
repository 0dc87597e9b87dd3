"""Sinks of frames: MP4, GIF, PNG sequence, raw RGB on stdout, a window. Files appear whole or not at all."""

from __future__ import annotations

import importlib
from fractions import Fraction
from pathlib import Path
from typing import Optional

from t2v_edge.errors import SinkError
from t2v_edge.sinks.base import Sink
from t2v_edge.sinks.marks import PICTURE, VIDEO, sequence_files
from t2v_edge.util.targets import TargetKind

__all__ = ["WINDOW", "Sink", "open_sink", "sink_targets"]

WINDOW = "window"
"""The target that means a window on the screen."""


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> Sink:
    """A sink for `target`. Use it as a context manager; see `Sink`. Raises `SinkError` if the target cannot be served.

    target: ``x.mp4``, ``x.gif``, ``frames/%04d.png``, ``-`` for raw RGB on stdout, or `WINDOW`.
    fps: frames a second, exact.
    size: (width, height) in pixels.
    """
    kind = _kind(target)
    try:
        module = importlib.import_module(f"t2v_edge.sinks.{kind}")
    except ImportError as error:
        raise SinkError(f"{target}: {error.name} is not installed; pip install 't2v-edge[video]'") from error
    sink: Sink = module.open_sink(target, fps, size)
    return sink


def sink_targets(target: Optional[str]) -> list[tuple[Path, TargetKind]]:
    """The files that a sink for `target` may replace, and what it writes there. None is no target."""
    kind = "raw" if target is None else _kind(target)
    if target is None or kind in ("raw", "window"):
        return []
    if kind != "png":
        return [(Path(target), VIDEO)]
    return [(path, PICTURE) for path in (Path(target), *sequence_files(target))]


def _kind(target: str) -> str:
    lowered = target.lower()
    if target == "-":
        return "raw"
    if target == WINDOW:
        return "window"
    for suffix, kind in ((".mp4", "mp4"), (".gif", "gif"), (".png", "png")):
        if lowered.endswith(suffix):
            return kind
    raise SinkError(f"{target}: this kind of file is not supported; use x.mp4, x.gif, frames/%04d.png or - for stdout")
