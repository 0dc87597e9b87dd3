"""The schedule of a live stream: when frames are due, which of them are made, and where its motion stands.

It has no threads and no clock: times are arguments, in seconds of any monotonic clock. Frame `index` is due at
``start + index / fps``, an exact fraction. Only the time in which the stream stood still is added. So no rate drifts
against the clock, for any run time and any delay. A late frame moves no other one: missed frames are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Optional

BOUND_S = 0.25
"""How late a stream may be and still keep its schedule. Later than that, it restarts at the present."""
MARGIN_S = 0.002
"""How much earlier a frame is begun than its making takes: the time that a thread needs to wake up."""
FORGET = 0.05
"""The share of its excess over the newest frame's time that the longest time loses with each frame."""

TICKS = 1 << 40
"""Ticks a second. A power of two: floating-point clocks, from an hour up, are whole numbers of ticks."""


@dataclass(frozen=True)
class FrameSlot:
    """The frame to make next. index: its number. due_s: when it is to be shown, on the clock.

    skipped: frames that were missed before it. restarted: the schedule restarts here, because the stream was later than
    its bound.
    """

    index: int
    due_s: float
    skipped: int
    restarted: bool


class Pacer:
    """The schedule of one stream. `fps`: shown frames a second. bound_s: see `BOUND_S`; two frames at the least.

    It stands still until `go`, and again from `hold` to the next `go`. Nothing is missed in that time, and the frames'
    numbers continue after it. `plan` gives the frame to make next and changes nothing; `commit` notes that it was made.
    Committed numbers always rise, except after `rewind`.
    """

    # Time is counted in whole ticks, which is as exact as fractions and costs less. Roundings, under a picosecond,
    # never make a frame early.

    def __init__(self, fps: Fraction, bound_s: float = BOUND_S) -> None:
        self.period = 1 / fps
        self.bound_s = bound_s
        self._frames, self._seconds = fps.numerator, fps.denominator * TICKS  # that many frames in so many ticks
        self._bound = int(bound_s * TICKS)
        self._start: Optional[int] = None
        self._held_at: Optional[int] = None
        self._last = -1

    @property
    def running(self) -> bool:
        return self._start is not None and self._held_at is None

    @property
    def last(self) -> int:
        """The newest committed frame, -1 before the first."""
        return self._last

    def go(self, now_s: float) -> None:
        """Start, or continue after `hold`: frame times move by exactly the time that it lasted."""
        now = math.ceil(now_s * TICKS)
        if self._start is None:
            self._start = now
        elif self._held_at is not None:
            self._start += max(now - self._held_at, 0)
            self._held_at = None

    def hold(self, now_s: float) -> None:
        """Stand still; nothing is due until `go`."""
        if self.running:
            self._held_at = int(now_s * TICKS)

    def present(self, now_s: float) -> int:
        """The frame of the time `now_s`, -1 before the start."""
        if self._start is None:
            return -1
        now = int(now_s * TICKS) if self._held_at is None else self._held_at
        return (now - self._start) * self._frames // self._seconds

    def due(self, index: int) -> float:
        """When frame `index` is due, rounded up, so that it is never shown early."""
        ticks = self._due(index)
        rounded = ticks / TICKS
        return rounded if rounded * TICKS >= ticks else math.nextafter(rounded, math.inf)

    def plan(self, now_s: float, stride: int = 1) -> FrameSlot:
        """The frame to make next, of every `stride`-th.

        It is the next one. If its time is over, it is the one of the present time, less than a frame late. If the last
        frame is longer ago than the bound, it is the first that is not due yet. Raises `RuntimeError` before `go`.
        """
        now = int(now_s * TICKS)
        following = self._last + stride if self._last >= 0 else 0
        # The frame before the first was never due.
        behind = now - self._due(max(self._last, 0))
        if behind > self._bound and behind * self._frames > 2 * stride * self._seconds:
            index = max(self.present(now_s), following)
            if self._due(index) < now:
                index += 1
            return FrameSlot(index, self.due(index), (index - following) // stride, True)
        skipped = max((self.present(now_s) - following) // stride, 0)
        index = following + skipped * stride
        return FrameSlot(index, self.due(index), skipped, False)

    def commit(self, index: int) -> None:
        """Note that frame `index` is made, or given up. Raises `ValueError` for a number that does not rise."""
        if index <= self._last:
            raise ValueError(f"frame {index} comes after frame {self._last}")
        self._last = index

    def rewind(self, index: int) -> None:
        """Free the numbers after `index`, whose frames were dropped and never shown."""
        self._last = min(self._last, index)

    def _due(self, index: int) -> int:
        """When frame `index` is due, in ticks, rounded up."""
        if self._start is None:
            raise RuntimeError("the schedule has not been started")
        return self._start - (-index * self._seconds // self._frames)


class MotionTimeline:
    """The position of the motion at each shown frame, in base steps: a line that can be restarted.

    `rate`: base steps from one frame number to the next. Positions only grow.
    """

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self._origin = (0, Fraction(0))

    def at(self, index: int) -> Fraction:
        return self._origin[1] + (index - self._origin[0]) * self.rate

    def restart(self, index: int, position: Fraction) -> None:
        """Continue from `position` at frame `index`."""
        self._origin = (index, position)


class LeadTime:
    """How long before it is due a frame must be begun: the longest recent making, and a margin.

    A longer time counts at once, shorter ones little by little.
    """

    def __init__(self) -> None:
        self._peak_s = 0.0

    def observe(self, took_s: float) -> None:
        self._peak_s = max(took_s, self._peak_s + FORGET * (took_s - self._peak_s))

    def lead_s(self, period_s: float, ahead: int = 0) -> float:
        """The lead, `ahead` frames more than needed. It needs at most a frame: a slower one is late anyway."""
        return min(self._peak_s + MARGIN_S, period_s) + ahead * period_s
