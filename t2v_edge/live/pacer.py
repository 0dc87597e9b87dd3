"""When the frames of a live stream are due, which of them are made, and where its motion stands. No threads, no clock:
times are handed in, in seconds of any monotonic clock.

Frame `index` is due at ``start + index / fps``, as an exact fraction, shifted by nothing but the time in which the
stream stood still. So no rate drifts against the clock, however long it runs and however late frames are. A frame that
is late moves no other one: frames that are missed are left out by number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Optional

BOUND_S = 0.25
"""How late a stream may be and still go by its schedule; later, and it starts anew at the present."""
MARGIN_S = 0.002
"""What a frame is begun earlier than its making has taken of late: what waking up takes."""
FORGET = 0.05
"""Of what a frame took less than the longest of late, what is forgotten with each frame."""

TICKS = 1 << 40
"""In a second. A power of two: clocks that count in floating point, from an hour up, are whole numbers of them."""


@dataclass(frozen=True)
class FrameSlot:
    """The frame to make next. index: its number. due_s: when it is to be shown, on the clock.

    skipped: frames between the one before and this that were missed. anew: whether the schedule is taken up anew here,
    because the stream was later than its bound.
    """

    index: int
    due_s: float
    skipped: int
    anew: bool


class Pacer:
    """The schedule of one stream. `fps`: shown frames a second. bound_s: see `BOUND_S`; two frames at the least.

    It stands still until `go`, and again from `hold` to the next `go`; what a stream misses in that time is not missed,
    and its numbers go on as though that time had not been. `plan` says what to make next and changes nothing; `commit`
    tells it that this was done. Numbers that are committed always rise, but for those that `rewind` gives back.
    """

    # Inside, time is whole ticks, and sums are of whole numbers: as exact as fractions, at a tenth of their cost. Each
    # rounding, by less than a picosecond, is to the side on which a frame is not early.

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
        """The newest frame that is committed, -1 before the first."""
        return self._last

    def go(self, now_s: float) -> None:
        """Start, or go on after `hold`: frame times move by exactly the time it lasted."""
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
        """The frame whose time it is, -1 before the start."""
        if self._start is None:
            return -1
        now = int(now_s * TICKS) if self._held_at is None else self._held_at
        return (now - self._start) * self._frames // self._seconds

    def due(self, index: int) -> float:
        """When frame `index` is due, rounded up, so that who waits for it never shows it early."""
        ticks = self._due(index)
        rounded = ticks / TICKS
        return rounded if rounded * TICKS >= ticks else math.nextafter(rounded, math.inf)

    def plan(self, now_s: float, stride: int = 1) -> FrameSlot:
        """The frame to make next, where every `stride`-th is wanted.

        That is the next one; where that one's time is over, the one whose time it is (less than a frame late); where
        the last one is longer ago than the bound, the first that is not due yet. Raises `RuntimeError` before `go`.
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
        """Frame `index` is made, or given up. Raises `ValueError` where numbers do not rise."""
        if index <= self._last:
            raise ValueError(f"frame {index} comes after frame {self._last}")
        self._last = index

    def rewind(self, index: int) -> None:
        """Frames after `index` were thrown away and never shown; their numbers are free again."""
        self._last = min(self._last, index)

    def _due(self, index: int) -> int:
        """In ticks, rounded up."""
        if self._start is None:
            raise RuntimeError("the schedule has not been started")
        return self._start - (-index * self._seconds // self._frames)


class MotionTimeline:
    """Where the motion stands at a shown frame, in base steps: a line, begun anew where motion must not follow.

    `rate`: base steps from one frame number to the next. Positions only grow.
    """

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self._origin = (0, Fraction(0))

    def at(self, index: int) -> Fraction:
        return self._origin[1] + (index - self._origin[0]) * self.rate

    def restart(self, index: int, position: Fraction) -> None:
        """From frame `index` on, go on from `position`."""
        self._origin = (index, position)


class LeadTime:
    """How long before it is due a frame must be begun: the longest that one has taken of late, and a margin.

    A longer time is taken over at once, shorter ones bit by bit.
    """

    def __init__(self) -> None:
        self._peak_s = 0.0

    def observe(self, took_s: float) -> None:
        self._peak_s = max(took_s, self._peak_s + FORGET * (took_s - self._peak_s))

    def lead_s(self, period_s: float, ahead: int = 0) -> float:
        """`ahead` frames earlier than needed; more than a frame is never needed, as then it is late anyway."""
        return min(self._peak_s + MARGIN_S, period_s) + ahead * period_s
