"""The Frechet distance of two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Squared Frechet distance (Dowson and Landau, 1982) of Gaussians fitted to (n, d) and (m, d); n, m >= 2.

    It is the FID of Heusel et al. (NeurIPS 2017) on other features, so it cannot be compared with published FIDs. The
    trace of the root of the covariances' product is the sum of the singular values of the product of the centred sets.
    That needs no matrix root and is exact for n < d.
    """
    if one.shape == other.shape and np.array_equal(one, other):
        return 0.0
    first, second = (part.astype(np.float64) for part in (one, other))
    means = first.mean(0) - second.mean(0)
    first, second = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (first, second))
    cross = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return max(0.0, float(means @ means + (first**2).sum() + (second**2).sum() - 2 * cross))
