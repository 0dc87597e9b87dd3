"""The quality of a live stream: fewer frames a second when the device does not keep up, and more when it does.

It is pure: observations go in, a decision comes out. It does not touch the stream's state, captions and time. With a
divisor of d every d-th frame of the schedule is made, and the motion is as fast as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

LOWEST_FPS = 7
"""The fewest frames a second that still look like motion. No level has less."""
DIVISORS = (1, 2, 3, 4, 6, 8, 12, 16)
MISSED = 0.1
"""The share of frames that may be late or left out. With more, the level is too demanding."""
FULL, FITS, ROOMY = 1.0, 0.85, 0.7
"""Shares of the time between frames that making one takes. Past FULL, frames must be late. Quality goes down to a level
that FITS, and up only to one that is ROOMY. The gaps between them keep it from going back and forth."""
PATIENCE = 5
"""Roomy windows in a row before quality goes up to a level. A level that fails although its frame times fit needs twice
as many, until it has lasted for twice as many windows."""
DOUBT = 2
"""Windows in a row with missed frames before quality goes down, if frame times do not explain them."""


@dataclass(frozen=True)
class QualityWindow:
    """Observations since the last decision, of about a second.

    frames: made. missed: late or left out because of the device. cost_s: the median time that making one took, on which
    a single stall has no effect.
    """

    frames: int
    missed: int
    cost_s: float


class Quality:
    """The level of one stream: an index into `divisors`, 0 for every frame.

    If frames take constant time, the level settles after at most `settles_after` decisions and stays. If frames are
    missed although their times fit, each level that fails again is tried half as often from then on.
    """

    def __init__(self, fps: Fraction) -> None:
        self.fps = fps
        self.divisors = tuple(d for d in DIVISORS if d == 1 or fps / d >= LOWEST_FPS)
        self.level = 0
        self._calm = 0
        self._doubts = 0
        self._held_out = 0
        self._patience = [PATIENCE] * len(self.divisors)

    @property
    def divisor(self) -> int:
        return self.divisors[self.level]

    @property
    def settles_after(self) -> int:
        """Decisions until the level settles, if no level has failed before."""
        return (PATIENCE + 1) * len(self.divisors) + DOUBT

    def observe(self, window: QualityWindow) -> bool:
        """Decide; True if the level changed."""
        before = self.level
        if window.frames <= 0:
            return False
        self._doubts = self._doubts + 1 if window.missed > MISSED * (window.frames + window.missed) else 0
        self._held_out += 1
        if self._held_out >= 2 * self._patience[self.level]:
            self._patience[self.level] = PATIENCE
        if self._share(window, self.level) > FULL or self._doubts >= DOUBT:
            self._go_down(window)
        elif self._doubts == 0 and self.level > 0 and self._share(window, self.level - 1) <= ROOMY:
            self._calm += 1
            if self._calm >= self._patience[self.level - 1]:
                self.level -= 1
                self._calm = self._held_out = 0
        else:
            self._calm = 0
        return self.level != before

    def _go_down(self, window: QualityWindow) -> None:
        """Go down to the first level where frames fit, by one level at least."""
        self._calm = self._doubts = self._held_out = 0
        if self.level + 1 == len(self.divisors):
            return
        if self._share(window, self.level) <= FULL:
            self._patience[self.level] *= 2
        self.level += 1
        while self.level + 1 < len(self.divisors) and self._share(window, self.level) > FITS:
            self.level += 1

    def _share(self, window: QualityWindow, level: int) -> float:
        """The share of the time between frames at a level that making one takes."""
        return float(window.cost_s * self.fps / self.divisors[level])
