"""What the reference model's evaluation adds to the toolchain's counting: the shuffled control, groups and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t2v_export.evaluate.readings import Readings


def derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly drawn permutation (count,) that leaves nothing in its place; `count` >= 2."""
    if count < 2:
        raise ValueError(f"{count} captions cannot be shuffled among the videos; evaluate at least 2")
    while True:
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order


def groups(readings: Readings, flags: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """`Readings.accuracy` of every named subset that is not empty."""
    return {name: readings.of(chosen).accuracy() for name, chosen in flags.items() if chosen.any()}


def percent(entry: Mapping[str, Any] | None) -> str:
    """``98.2 (97.1–98.9)``, or a dash where nothing was counted."""
    if not entry or not entry.get("count"):
        return "–"
    return f"{100 * entry['rate']:.1f} ({100 * entry['low']:.1f}–{100 * entry['high']:.1f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *map(list, rows)])


def table_of(columns: Mapping[str, Callable[[str], str]], names: Sequence[str]) -> str:
    """One row for each name, one column for each function of a name."""
    return markdown_table(["", *columns], [[name, *(cell(name) for cell in columns.values())] for name in names])
