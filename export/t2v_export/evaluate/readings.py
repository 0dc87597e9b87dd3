"""Counting what an evaluator read: proportions with their intervals, and chance levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2v_edge.errors import UsageError
from t2v_export.evaluate.caption_set import SlottedCaption

Z_95 = 1.959963984540054
UNNAMED = -1


def wilson(right: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson, JASA 1927), 95 % by default; (0, 1) where none was counted."""
    if count == 0:
        return 0.0, 1.0
    share, spread = right / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return (0.0 if right == 0 else max(0.0, centre - half)), (1.0 if right == count else min(1.0, centre + half))


def proportion(right: int, count: int) -> dict[str, Any]:
    """``{"rate", "right", "count", "low", "high"}``: a proportion, its 95 % Wilson interval; rate 0 of none."""
    right, count = int(right), int(count)
    low, high = (float(bound) for bound in wilson(right, count))
    rate = right / count if count else 0.0
    return {"rate": round(rate, 5), "right": right, "count": count, "low": round(low, 5), "high": round(high, 5)}


@dataclass(frozen=True)
class Readings:
    """What captions named and what was read: int (n, slots) each.

    `UNNAMED` in `named` means that the caption does not name the slot.
    """

    slots: tuple[str, ...]
    named: NDArray[np.int64]
    read: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.named)

    def of(self, chosen: NDArray[np.bool_]) -> Readings:
        """The rows where `chosen` (n,) bool holds."""
        return Readings(self.slots, self.named[chosen], self.read[chosen])

    def shuffled(self, order: NDArray[np.int64]) -> Readings:
        """Caption i judged by the video of caption `order[i]`."""
        return Readings(self.slots, self.named, self.read[order])

    def right(self) -> NDArray[np.bool_]:
        """Bool (n, slots): read as named, or not named."""
        return np.asarray((self.named == self.read) | (self.named == UNNAMED))

    def accuracy(self) -> dict[str, dict[str, Any]]:
        """A `proportion` for each slot over the captions that name it; ``all`` named attributes of a caption right."""
        right, named = self.right(), self.named != UNNAMED
        rates = {
            slot: proportion(int(right[named[:, i], i].sum()), int(named[:, i].sum()))
            for i, slot in enumerate(self.slots)
        }
        return rates | {"all": proportion(int(right.all(1).sum()), len(self))}

    def chance(self) -> dict[str, dict[str, float]]:
        """What shuffling must give: the exact expectation over all derangements; majority and uniform guesses.

        ``expected``: caption i meets any other caption's video with equal probability. ``majority``: always saying the
        commonest named value. ``uniform``: one over the number of values named.
        """
        levels = {}
        for i, slot in enumerate(self.slots):
            named = self.named[:, i] != UNNAMED
            labels = self.named[named, i]
            if not len(labels) or len(self) < 2:
                continue
            size = int(max(self.named[:, i].max(), self.read[:, i].max())) + 1
            wanted, got = np.bincount(labels, minlength=size), np.bincount(self.read[:, i], minlength=size)
            own = int((labels == self.read[named, i]).sum())
            levels[slot] = {
                "expected": round((int((wanted * got).sum()) - own) / (len(labels) * (len(self) - 1)), 5),
                "majority": round(int(wanted.max()) / len(labels), 5),
                "uniform": round(1 / int((wanted > 0).sum()), 5),
            }
        levels["all"] = {"expected": self._chance_of_all()}
        return levels

    def _chance_of_all(self) -> float:
        """The expected share of captions all of whose named attributes another caption's video happens to show."""
        if len(self) < 2:
            return 0.0
        own = int(self.right().all(1).sum())
        met = sum(int(((row == UNNAMED) | (row == self.read)).all(1).sum()) for row in self.named)
        return round((met - own) / (len(self) * (len(self) - 1)), 5)


def named_values(captions: Sequence[SlottedCaption], slots: dict[str, tuple[str, ...]]) -> NDArray[np.int64]:
    """The index of each value that a caption names, int (n, slots); raises `UsageError` for an unknown one."""
    named = np.full((len(captions), len(slots)), UNNAMED, np.int64)
    columns = {slot: i for i, slot in enumerate(slots)}
    for row, caption in zip(named, captions):
        for slot, value in caption.slots.items():
            if value not in slots.get(slot, ()):
                raise UsageError(
                    f"caption {caption.text[:60]!r} names {slot} {value!r}, which the evaluator does not "
                    "know; give the --captions or the --evaluator that belong together"
                )
            row[columns[slot]] = slots[slot].index(value)
    return named
