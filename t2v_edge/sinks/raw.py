"""A sink for raw RGB on standard output, for ffmpeg or GStreamer.

Example: ``t2v-edge run BUNDLE CAPTION -o - | ffmpeg -f rawvideo -pix_fmt rgb24 -s 256x256 -r 16 -i - x.webm``
"""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any, BinaryIO, Optional

import numpy as np

from t2v_edge.frame import Frame
from t2v_edge.sinks.base import Sink, check_frame


class RawSink(Sink):
    """A stream of height x width x 3 bytes a frame. `BrokenPipeError` goes to the caller if the reader closes."""

    def __init__(self, out: BinaryIO, size: tuple[int, int]) -> None:
        self._out = out
        self._size = size

    def write(self, frame: Frame) -> bool:
        check_frame(frame, self._size, "stdout")
        self._out.write(np.ascontiguousarray(frame.pixels).data)
        return True

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Any) -> None:
        if kind is None:
            self._out.flush()


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> RawSink:
    return RawSink(sys.stdout.buffer, size)
