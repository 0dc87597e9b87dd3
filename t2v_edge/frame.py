"""One shown frame of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Frame:
    """Pixels and when to show them.

    pixels: uint8 (H, W, 3), RGB, full range, C-contiguous; it belongs to whoever holds the frame.
    index: 0, 1, 2, ... in the stream; in a live one, numbers of frames that were not shown are missing.
    pts * time_base: seconds since the stream's start, exact.
    generation: counts the caption changes and resets before it, from 0. caption: the one in force, normalised.
    """

    pixels: npt.NDArray[np.uint8]
    index: int
    pts: int
    time_base: Fraction
    generation: int
    caption: str

    @property
    def seconds(self) -> Fraction:
        """When the frame is shown, in exact seconds since the stream's start."""
        return self.pts * self.time_base
