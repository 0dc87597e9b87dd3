"""Options that streams of every kind share."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Optional, Union

from t2v_edge.bundle.draws import check_seed
from t2v_edge.errors import UsageError
from t2v_edge.play.clock import Clock, exact
from t2v_edge.util.limits import MAX_SIDE


@dataclass(frozen=True)
class MotionOptions:
    """How a motion is drawn and shown.

    fps: shown frames a second, 1/60 to 1000, a fraction as text ("30000/1001"), or None for the model's own. size:
    (width, height) of the frames shown, 1 to 8192 each, or None for the model's own. seed: of every random draw, 0 to
    2**64 - 1. smoothing: of motion, 0 (none) to below 1, see `clock.Smoother`. blend_steps: base steps over which a
    caption change blends, 0 or more, or None for the model's own. Raises `UsageError` for values out of range.
    """

    fps: Union[int, float, Fraction, str, None] = None
    size: Optional[tuple[int, int]] = None
    seed: int = 0
    smoothing: float = 0.0
    blend_steps: Optional[int] = None

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise UsageError(f"size is {self.size[0]}x{self.size[1]}, expected 1 to {MAX_SIDE} pixels a side")
        check_seed(self.seed)
        if not 0.0 <= self.smoothing < 1.0:
            raise UsageError(f"smoothing is {self.smoothing}, expected 0 (none) up to but not including 1")
        if self.blend_steps is not None and self.blend_steps < 0:
            raise UsageError(f"blend_steps is {self.blend_steps}, expected 0 or more")

    def clock(self, base_fps: int) -> Clock:
        """The stream's clock, for a model of `base_fps` steps a second. Raises `UsageError` for a bad `fps`."""
        base = Fraction(base_fps)
        return Clock(base, base if self.fps is None else exact(self.fps, "fps"))
