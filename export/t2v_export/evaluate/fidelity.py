"""How near two frames are: PSNR and SSIM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Plane = NDArray[np.float32]

CAP_DB = 100.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(one: Frame, other: Frame) -> float:
    """Peak signal-to-noise ratio, dB, peak 255, of two uint8 frames; 100 where they are the same, and at most."""
    error = float(np.mean(np.square(one.astype(np.float32) - other.astype(np.float32)), dtype=np.float64))
    return min(CAP_DB, 10 * math.log10(255**2 / error)) if error else CAP_DB


def luminance(frame: Frame) -> Plane:
    """Y of BT.601, float32 (H, W), 0 to 255."""
    return np.asarray(frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def ssim(one: Plane, other: Plane) -> float:
    """Structural similarity (Wang et al., IEEE Transactions on Image Processing 2004) of two luminances.

    Gaussian windows of 11 pixels and sigma 1.5; the border that a window leaves does not count where the picture is
    larger than that. Exactly 1 for equal pictures.
    """
    mean_one, mean_other = _blur(one), _blur(other)
    square_one, square_other, product = mean_one**2, mean_other**2, mean_one * mean_other
    var_one, var_other = _blur(one * one) - square_one, _blur(other * other) - square_other
    covariance = _blur(one * other) - product
    value = ((2 * product + _C1) * (2 * covariance + _C2)) / (
        (square_one + square_other + _C1) * (var_one + var_other + _C2)
    )
    edge = _WINDOW // 2
    inner = value[edge:-edge, edge:-edge] if min(value.shape) > 2 * edge else value
    return float(inner.mean(dtype=np.float64))


def _blur(plane: Plane) -> Plane:
    return np.asarray(cv2.GaussianBlur(plane, (_WINDOW, _WINDOW), _SIGMA, borderType=cv2.BORDER_REFLECT_101))


def spread(values: Sequence[float] | NDArray[np.floating]) -> dict[str, float]:
    """``{"mean", "p5", "min"}``: mean, 5th percentile and lowest."""
    return {"mean": float(np.mean(values)), "p5": float(np.percentile(values, 5)), "min": float(np.min(values))}
