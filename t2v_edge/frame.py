"""A shown frame of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Frame:
    """Pixels, and when to show them.

    pixels: uint8 (H, W, 3), RGB, full range, C-contiguous. They belong to whoever holds the frame.
    index: 0, 1, 2, ... in the stream. A live stream leaves out the numbers of frames that were not shown.
    pts * time_base: exact seconds since the stream's start.
    generation: counts the caption changes and resets before the frame, from 0.
    caption: the caption in force, normalised.
    """

    pixels: npt.NDArray[np.uint8]
    index: int
    pts: int
    time_base: Fraction
    generation: int
    caption: str

    @property
    def seconds(self) -> Fraction:
        """When to show the frame, in exact seconds since the stream's start."""
        return self.pts * self.time_base
