"""Encoders of frames. Worker threads call them. OpenCV releases the interpreter's lock while it encodes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.protocol import JPEG, RAW, WEBP

_SUFFIXES = {JPEG: ".jpg", WEBP: ".webp"}


def encode(pixels: npt.NDArray[np.uint8], kind: str, quality: int) -> bytes:
    """The payload of a frame. Raises `ProtocolError`.

    pixels: uint8 (H, W, 3), RGB.
    kind: ``raw``, ``jpeg`` or ``webp``.
    quality: 1 to 100, for jpeg and webp.
    """
    if kind == RAW:
        return pixels.tobytes()
    import cv2

    flag = cv2.IMWRITE_JPEG_QUALITY if kind == JPEG else cv2.IMWRITE_WEBP_QUALITY
    # cvtColor and not pixels[..., ::-1]: OpenCV would copy that value by value, under the interpreter's lock.
    done, data = cv2.imencode(_SUFFIXES[kind], cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (flag, quality))
    if not done:
        raise ProtocolError("internal", f"OpenCV could not encode a frame as {kind}", "take the format raw")
    return data.tobytes()


def check_format(kind: str) -> None:
    """Raise `ProtocolError` if this format needs OpenCV and OpenCV is not installed."""
    if kind == RAW:
        return
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        remedy = "take the format raw, or install 't2v-edge[serve]' there"
        raise ProtocolError("bad_value", f"the server has no OpenCV to make {kind} with", remedy) from error
