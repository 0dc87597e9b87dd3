"""Whether two models are read right equally often: paired differences, bootstrap intervals, McNemar's test."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from t2v_export.evaluate.readings import UNNAMED, Readings

RESAMPLES = 10_000


def paired_differences(candidate: Readings, baseline: Readings, seed: int) -> dict[str, dict[str, Any]]:
    """Candidate minus baseline for each slot, over the captions that name it, and for ``all`` named together.

    ``points``: difference of the accuracies, percentage points. ``low``, ``high``: its 95 % interval by the paired
    percentile bootstrap over captions (Efron, Annals of Statistics 1979). ``gained``, ``lost``: captions that only the
    candidate, only the baseline got right. ``p``: McNemar's exact test of gained and lost (McNemar, Psychometrika
    1947). Slots that no caption names are left out.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    one, other, named = candidate.right(), baseline.right(), candidate.named != UNNAMED
    found = {
        slot: paired(one[named[:, i], i], other[named[:, i], i], generator)
        for i, slot in enumerate(candidate.slots)
        if named[:, i].any()
    }
    return found | {"all": paired(np.all(one, 1), np.all(other, 1), generator)}


def paired(one: NDArray[np.bool_], other: NDArray[np.bool_], generator: np.random.Generator) -> dict[str, Any]:
    """The figures of `paired_differences` for two bool (n,), n > 0."""
    count, gained, lost = len(one), int((one & ~other).sum()), int((~one & other).sum())
    # A caption's difference is -1, 0 or 1: resampling captions draws how many of each, which is one multinomial.
    shares = [gained / count, lost / count, max(0.0, 1 - (gained + lost) / count)]
    drawn = generator.multinomial(count, shares, RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / count, [2.5, 97.5])
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {
        "points": 100 * (gained - lost) / count,
        "low": float(low),
        "high": float(high),
        "gained": gained,
        "lost": lost,
        "count": count,
        "p": p,
    }
