"""What the text stage makes of a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from t2v_edge.bundle.tokenizer import TokenizedCaption

DECIDED = 2 / 3
"""The least certain probability, exclusive: twice as likely as all others of its group together."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The text stage's result for one caption.

    `vector`: float32 (1, C), read-only. `source`: the caption it was made of. `fresh`: the text stage ran for this
    call; False where the result was remembered.
    """

    vector: npt.NDArray[np.float32]
    source: TokenizedCaption
    fresh: bool

    @property
    def caption(self) -> str:
        """The normalised caption."""
        return self.source.text

    @property
    def truncated(self) -> bool:
        """Whether the caption's end was cut."""
        return self.source.truncated


def settle_condition(condition: npt.NDArray[np.float32], groups: Sequence[int]) -> npt.NDArray[np.float32]:
    """A condition (1, C) whose certain groups of probabilities are exactly 0 and 1.

    A group is certain when its largest probability is over `DECIDED`. So a clear caption gives the same condition in
    every precision, engine and machine, and the same seed moves the same way. A recurrent state would keep even a tiny
    difference. groups: sizes of the groups, in order. Gives a new array, or the given one without groups.
    """
    if not groups:
        return condition
    settled: npt.NDArray[np.float32] = condition.copy()
    start = 0
    for size in groups:
        group = settled[0, start : start + size]
        largest = int(group.argmax())
        if group[largest] > DECIDED:
            group[:] = 0.0
            group[largest] = 1.0
        start += size
    return settled
