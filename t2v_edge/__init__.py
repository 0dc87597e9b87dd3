"""t2v_edge: plays text-to-video bundles as live streams of frames, on small devices, without torch.

with t2v_edge.Pipeline.open("bundle") as pipeline:
    for frame in pipeline.stream("a person is waving", fps=30, seconds=4):
        show(frame.pixels)

A public name is imported on first use, so that a command line pays only for what it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2v_edge.bundle.bundle import Bundle, Manifest, write_bundle
    from t2v_edge.errors import T2VError
    from t2v_edge.frame import Frame
    from t2v_edge.live.options import LiveOptions
    from t2v_edge.live.stream import LiveStream
    from t2v_edge.pipeline import Pipeline
    from t2v_edge.play.stream import FrameStream, StreamOptions

__all__ = [
    "Bundle",
    "Frame",
    "FrameStream",
    "LiveOptions",
    "LiveStream",
    "Manifest",
    "Pipeline",
    "StreamOptions",
    "T2VError",
    "write_bundle",
]

__version__ = "0.1.0"

_MODULE_OF = {
    "Bundle": "t2v_edge.bundle.bundle",
    "Frame": "t2v_edge.frame",
    "FrameStream": "t2v_edge.play.stream",
    "LiveOptions": "t2v_edge.live.options",
    "LiveStream": "t2v_edge.live.stream",
    "Manifest": "t2v_edge.bundle.bundle",
    "Pipeline": "t2v_edge.pipeline",
    "StreamOptions": "t2v_edge.play.stream",
    "T2VError": "t2v_edge.errors",
    "write_bundle": "t2v_edge.bundle.bundle",
}
"""Public name -> the module that defines it."""

_MODULES = ("captions", "errors", "frame", "pipeline", "spec")
"""Public modules that ``import t2v_edge`` alone gives access to."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
