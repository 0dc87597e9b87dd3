"""A frame as a client of the live server receives it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from t2v_edge.errors import ClientError
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import RAW


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A received frame, not yet decoded.

    header: its format, generation, sequence, time and size.
    caption: the caption shown last when the frame came.
    """

    header: FrameHeader
    payload: memoryview
    caption: str

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB; read-only for the format raw. Each call decodes again. Raises `ClientError`."""
        shape = (self.header.height, self.header.width, 3)
        if self.header.format == RAW:
            return np.frombuffer(self.payload, np.uint8).reshape(shape)
        try:
            import cv2
        except ImportError as error:
            raise ClientError("frames that are not raw need OpenCV: pip install 't2v-edge[serve]'") from error
        pixels = cv2.imdecode(np.frombuffer(self.payload, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None or pixels.shape != shape:
            raise ClientError(f"a frame is no {self.header.format} of {shape[1]}x{shape[0]}; ask for the format raw")
        return np.ascontiguousarray(pixels[:, :, ::-1])

    @property
    def seconds(self) -> Fraction:
        """When to show the frame, in exact seconds since the stream's start."""
        return self.header.pts * self.header.time_base
