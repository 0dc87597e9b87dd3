"""t2v_edge: plays text-to-video bundles as live streams of frames, on small devices, without torch.

with t2v_edge.Pipeline.open("bundle") as pipeline:
    for frame in pipeline.stream("a person is waving", fps=30, seconds=4):
        show(frame.pixels)
"""

from __future__ import annotations

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
