"""Fewer frames a second where the device does not keep up, and more again where it does.

Pure: what was observed goes in, a decision comes out. The stream's state, its captions and its time are not touched:
at level d every d-th frame of the schedule is made, and the motion between them is as fast as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

LOWEST_FPS = 7
"""Below this it is no longer seen as motion; no level goes there."""
DIVISORS = (1, 2, 3, 4, 6, 8, 12, 16)
MISSED = 0.1
"""More frames than this share are late or left out: the level is too high."""
FULL, FITS, ROOMY = 1.0, 0.85, 0.7
"""Shares of the time between frames that making one takes: past FULL frames must be late; a level is gone down to where
it FITS, and gone up to only where it is ROOMY. The gaps between them are what keeps it from going to and fro."""
PATIENCE = 5
"""Windows in a row that must be roomy before a level is gone up. Doubled for a level each time it fails for a reason
that the times of frames do not show, until it has held out for twice as many."""
DOUBT = 2
"""Windows in a row with missed frames before it is believed where the times of frames do not explain them."""


@dataclass(frozen=True)
class QualityWindow:
    """What was seen since the last decision, a second or so. frames: made; missed: late or left out because of the
    device; cost_s: what making one took, the median, so that a single stall is none."""

    frames: int
    missed: int
    cost_s: float


class Quality:
    """The level of one stream: an index into `divisors`, 0 for every frame.

    Under a load whose frames take constant time it is settled after at most `settles_after` decisions, wherever it was
    before, and stays. Where frames are missed for a reason that their times do not show, each level tried again in vain
    is tried half as often from then on.
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
        """Decisions, where no level has failed before; see the class."""
        return (PATIENCE + 1) * len(self.divisors) + DOUBT

    def observe(self, window: QualityWindow) -> bool:
        """Decide; whether the level is another now."""
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
        """To the first level where frames fit, one lower at the least."""
        self._calm = self._doubts = self._held_out = 0
        if self.level + 1 == len(self.divisors):
            return
        if self._share(window, self.level) <= FULL:
            self._patience[self.level] *= 2
        self.level += 1
        while self.level + 1 < len(self.divisors) and self._share(window, self.level) > FITS:
            self.level += 1

    def _share(self, window: QualityWindow, level: int) -> float:
        """Of the time between frames at a level, what making one takes."""
        return float(window.cost_s * self.fps / self.divisors[level])
