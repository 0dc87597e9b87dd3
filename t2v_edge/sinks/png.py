"""A sink for a sequence of PNG files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy.typing as npt

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks.base import Sink, check_frame
from t2v_edge.sinks.marks import PICTURE, is_sequence, mark_png
from t2v_edge.util.files import write_atomic

_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 3]


def encode_png(pixels: npt.NDArray[Any]) -> bytes:
    """A PNG file of uint8 (H, W, 3) RGB pixels."""
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _FAST)
    if not done:
        raise SinkError("OpenCV cannot encode PNG; pip install --force-reinstall opencv-python-headless")
    return mark_png(data.tobytes())


class PngSink(Sink):
    """A sequence with frame k in ``pattern % k``. Each file appears whole. Files stay if the run fails later."""

    def __init__(self, pattern: str, size: tuple[int, int]) -> None:
        if not is_sequence(pattern):
            raise SinkError(f"{pattern}: a PNG sequence needs a number in its name, as in frames/%04d.png")
        self._pattern = pattern
        self._size = size

    def write(self, frame: Frame) -> bool:
        check_frame(frame, self._size, self._pattern)
        write_atomic(Path(self._pattern % frame.index), encode_png(frame.pixels), PICTURE)
        return True


def open_sink(target: str, fps: Fraction, size: tuple[int, int]) -> PngSink:
    return PngSink(target, size)
