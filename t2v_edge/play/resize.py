"""Frames in another size, with OpenCV."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy.typing as npt


class Resizer:
    """Resizes uint8 (H, W, 3) frames from `made` to `shown`, both (width, height): down by area, up by Lanczos."""

    def __init__(self, made: tuple[int, int], shown: tuple[int, int]) -> None:
        self._size = shown
        shrinks = shown[0] <= made[0] and shown[1] <= made[1]
        self._method = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4

    def __call__(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return cast("npt.NDArray[Any]", cv2.resize(pixels, self._size, interpolation=self._method))
