"""The arithmetic of a stream, without engines: when frames are shown, and how conditions and motions change.

Motion is stepped at the model's own base rate. Shown frame k stands at ``k / fps`` seconds, which is base position
``k * base_fps / fps``. That is an exact fraction, so no rate drifts against another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Optional, Union

import numpy as np

from t2v_edge.engine.base import Vector
from t2v_edge.errors import UsageError
from t2v_edge.util.limits import MAX_FPS, MAX_TERM, MIN_FPS

START = Fraction(0)


def exact(value: Union[int, float, Fraction, str], name: str) -> Fraction:
    """`value` as an exact fraction: 0.1 is 1/10, "30000/1001" is NTSC. Raises `UsageError`, which names the option."""
    text = str(value)
    try:
        # An exponent is read as a float: "1e999999999" as a fraction would fill the memory.
        return Fraction(float(text)) if "e" in text.lower() or len(text) > 40 else Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UsageError(f"{name} is {value!r}, expected a number such as 24, 29.97 or 30000/1001") from error


@dataclass(frozen=True)
class Clock:
    """The times of shown frames and of base steps, in exact fractions. Raises `UsageError` for a bad rate."""

    base_fps: Fraction
    fps: Fraction

    def __post_init__(self) -> None:
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise UsageError(f"fps is {self.fps}, expected {MIN_FPS} to {MAX_FPS}")
        if max(self.fps.numerator, self.fps.denominator) > MAX_TERM:
            raise UsageError(f"fps is {self.fps}; as a fraction, its terms may be at most {MAX_TERM}: round it")

    @cached_property
    def time_base(self) -> Fraction:
        """Seconds a shown frame lasts; a frame's pts counts these."""
        return 1 / self.fps

    @cached_property
    def _steps_a_frame(self) -> tuple[int, int]:
        """A ratio of whole numbers, because arithmetic with fractions is slow at every frame."""
        ratio = self.base_fps / self.fps
        return ratio.numerator, ratio.denominator

    def position(self, index: int) -> tuple[int, Fraction]:
        """The base step at or before shown frame `index`, and how far it is to the next one, in [0, 1)."""
        steps, frames = self._steps_a_frame
        step, rest = divmod(index * steps, frames)
        return step, Fraction(rest, frames) if rest else START

    def frames_in(self, seconds: Fraction) -> int:
        """How many frames are shown in `seconds`: those whose time lies before the end."""
        return math.ceil(seconds * self.fps)

    def step_of(self, seconds: Fraction) -> int:
        """The first base step at or after `seconds`."""
        return math.ceil(seconds * self.base_fps)


def mix(one: Vector, other: Vector, share: float) -> Vector:
    """Linear interpolation, exactly `one` at 0 and `other` at 1."""
    if share <= 0.0:
        return one
    if share >= 1.0:
        return other
    mixed: Vector = one + (other - one) * np.float32(share)
    return mixed


class Blend:
    """A condition that moves to a new target over `steps` base steps, in a straight line.

    A new target in mid-blend starts from where the blend is. The recurrent state is not touched.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._start: Optional[Vector] = None
        self._target: Optional[Vector] = None
        self._current: Optional[Vector] = None
        self._done = 0

    def retarget(self, condition: Vector) -> None:
        """Aim at `condition`; the first target is taken at once."""
        self._start, self._target, self._done = self._current, condition, 0

    def advance(self) -> Vector:
        """The condition of the next base step."""
        if self._target is None:
            raise RuntimeError("no condition was set before the first step")
        if self._start is None or self._steps == 0:
            self._current = self._target
        else:
            self._done = min(self._done + 1, self._steps)
            self._current = mix(self._start, self._target, self._done / self._steps)
        return self._current


class Smoother:
    """A one-pole low-pass over base steps: ``y += (1 - smoothing) * (x - y)``, from the first motion on.

    `smoothing` in [0, 1): 0 passes motion through. The time constant at s is ``-1 / (base_fps * ln s)`` seconds, at any
    shown rate: 0.09 s for s = 0.5 and 16 base steps a second.
    """

    def __init__(self, smoothing: float) -> None:
        self._gain = np.float32(1.0 - smoothing)
        self._value: Optional[Vector] = None

    def __call__(self, motion: Vector) -> Vector:
        if self._value is None or self._gain == 1.0:
            self._value = motion
        else:
            self._value = self._value + self._gain * (motion - self._value)
        return self._value
