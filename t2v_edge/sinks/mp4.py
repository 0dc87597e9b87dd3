"""A sink for MP4 files with exact timestamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

import av
import av.codec
import numpy as np

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks.container import ContainerSink
from t2v_edge.sinks.marks import mark_mp4

_BT709 = 1
_LIMITED = 1


def choose_codec() -> tuple[str, dict[str, str]]:
    """The codec and its options: H.264 if FFmpeg has x264, else MPEG-4 part 2. Both near lossless, for two cores."""
    if "libx264" in av.codec.codecs_available:
        return "libx264", {"crf": "18", "preset": "veryfast"}
    return "mpeg4", {"q": "2"}


class Mp4Sink(ContainerSink):
    """An MP4 in yuv420p and BT.709, with its index at the front. Each frame keeps its pts, in units of 1/fps."""

    def __init__(self, target: str, fps: Fraction, size: tuple[int, int]) -> None:
        if size[0] % 2 or size[1] % 2:
            raise SinkError(f"{target}: MP4 needs even sides, not {size[0]}x{size[1]}; add one pixel with --size")
        self._fps = fps
        super().__init__(target, size, {"movflags": "+faststart"})

    def _start(self, container: Any) -> None:
        codec, options = choose_codec()
        stream = container.add_stream(codec, rate=self._fps, options=options)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / self._fps
        context = stream.codec_context
        context.time_base = 1 / self._fps
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._stream = stream

    def _mark(self, path: Path) -> None:
        mark_mp4(path)

    def _packets(self, frame: Optional[Frame]) -> Any:
        if frame is None:
            return self._stream.encode(None)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts = frame.pts
        picture.time_base = frame.time_base
        return self._stream.encode(picture)


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> Mp4Sink:
    return Mp4Sink(target, fps, size)
