"""A sink for looped GIFs, with a palette for each frame."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

import av
import av.filter
import numpy as np

from t2v_edge.frame import Frame
from t2v_edge.sinks.container import ContainerSink
from t2v_edge.sinks.marks import mark_gif

TICKS = 100
MIN_TICKS = 2
"""Browsers slow down frames shorter than 2/100 s. A tick is 1/100 s, the unit of GIF."""


def gif_ticks(seconds: Fraction) -> int:
    """The tick nearest to an exact time. Times are rounded, not delays, so that the errors do not add up."""
    return math.floor(seconds * TICKS + Fraction(1, 2))


class GifSink(ContainerSink):
    """A GIF with frames at the nearest 1/100 s. Above 50 fps it leaves out the frames that come too soon."""

    def __init__(self, target: str, fps: Fraction, size: tuple[int, int]) -> None:
        self._fps = fps
        self._last: Optional[int] = None
        self._graph = self._filters(size)
        super().__init__(target, size, {"loop": "0"})

    @staticmethod
    def _filters(size: tuple[int, int]) -> Any:
        graph = av.filter.Graph()
        source = graph.add_buffer(width=size[0], height=size[1], format="rgb24", time_base=Fraction(1, TICKS))
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single")
        use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
        sink = graph.add("buffersink")
        source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(use, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        return graph

    def _start(self, container: Any) -> None:
        stream = container.add_stream("gif", rate=self._fps)
        stream.width, stream.height = self._size
        stream.pix_fmt = "pal8"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream = stream

    def _mark(self, path: Path) -> None:
        mark_gif(path)

    def _packets(self, frame: Optional[Frame]) -> Any:
        if frame is not None:
            tick = gif_ticks(frame.seconds)
            if self._last is not None and tick - self._last < MIN_TICKS:
                return
            self._last = tick
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.pixels), format="rgb24")
            picture.pts, picture.time_base = tick, Fraction(1, TICKS)
            self._graph.push(picture)
        else:
            self._graph.push(None)
        for shown in self._pulled():
            yield from self._stream.encode(shown)
        if frame is None:
            yield from self._stream.encode(None)

    def _pulled(self) -> Any:
        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> GifSink:
    return GifSink(target, fps, size)
