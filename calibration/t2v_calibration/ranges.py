"""Ranges and scales of tensors: one histogram each, from which min-max, percentile, entropy and MSE are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2v_calibration.calibration_set import CalibrationError

Array = NDArray[Any]
METHODS = ("minmax", "percentile", "entropy", "mse")
WEIGHT_LEVELS = {8: 127, 7: 64}
"""Largest whole number of a weight, by bits. x86 before VNNI sums pairs of uint8 x int8 products in 16 bits: they clip
at 32,767, and 2 x 255 x 64 is below it.
"""
BINS = 4096
SAMPLED = 1 << 17  # elements of one tensor that a histogram takes; minimum and maximum are those of all
SHARES = np.linspace(0.2, 1.0, 41)  # of the full range, which entropy and MSE choose from


@dataclass(frozen=True)
class Grid:
    """What a tensor is rounded to: real = (q - `zero_point`) * `scale`; q from -127 to 127 where `signed`, else
    0 to 255.
    """

    scale: float
    zero_point: int
    signed: bool

    @property
    def dtype(self) -> type[np.generic]:
        return np.int8 if self.signed else np.uint8

    def rounded(self, values: Array) -> Array:
        """The values as the grid gives them back, float64."""
        low, high = (-127, 127) if self.signed else (0, 255)
        whole = np.clip(np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point, low, high)
        return np.asarray((whole - self.zero_point) * self.scale)


@dataclass
class Histogram:
    """Counts over [-`reach`, `reach`] in `BINS` bins. One pass over the values fills it.

    `reach` is a power of two. It doubles when values ask for it, and bins merge in pairs. `low` and `high` are the
    exact extremes.
    """

    low: float = np.inf
    high: float = -np.inf
    reach: float = 2.0**-20
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, name: str, values: Array) -> None:
        """Count the values of tensor `name`; raises `CalibrationError` for NaN or infinity."""
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise CalibrationError(f"calibration: {name} is NaN or infinite; take an earlier checkpoint")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        taken = flat[:: max(1, flat.size // SAMPLED)].astype(np.float64)
        index = ((taken + self.reach) * (BINS / (2 * self.reach))).astype(np.int64)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both."""
        made = Histogram(min(self.low, other.low), max(self.high, other.high))
        made._grow(max(self.reach, other.reach))
        for part in (self, other):
            grown = Histogram(reach=part.reach, counts=part.counts.copy())
            grown._grow(made.reach)
            made.counts = made.counts + grown.counts
        return made

    def above(self, floor: float) -> Histogram:
        """The histogram of the values with those below `floor` raised to it."""
        place = int(np.clip((floor + self.reach) * (BINS / (2 * self.reach)), 0, BINS - 1))
        counts = self.counts.copy()
        counts[place] += counts[:place].sum()
        counts[:place] = 0
        return Histogram(max(self.low, floor), max(self.high, floor), self.reach, counts)

    def centres(self) -> Array:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach)

    def _grow(self, magnitude: float) -> None:
        while self.reach < magnitude:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
            self.reach *= 2


def make_grid(low: float, high: float, signed: bool) -> Grid:
    """The grid of a range: symmetric with zero-point 0 where `signed`, else as wide as the range, zero exact in it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(-low, high) / 127 if signed else (high - low) / 255)) or 1.0
    return Grid(scale, 0 if signed else int(np.clip(np.rint(-low / scale), 0, 255)), signed)


def choose_grid(
    name: str, histogram: Histogram, method: str = "minmax", signed: bool = True, percentile: float = 99.99
) -> Grid:
    """The grid of the tensor `name`, by one of `METHODS`.

    minmax: the whole range. percentile: so many percent of the values, the same share cut off at either end. entropy:
    least Kullback-Leibler divergence between values and rounded values (Migacz, GTC 2017). mse: least mean squared
    error. Raises `CalibrationError` if nothing was counted.
    """
    if not histogram.counts.any():
        raise CalibrationError(f"calibration: nothing reached {name}; calibrate with more captions or steps")
    low, high = histogram.low, histogram.high
    if method == "percentile":
        shares = np.cumsum(histogram.counts) / histogram.counts.sum()
        tail = (100 - percentile) / 200
        width = 2 * histogram.reach / BINS
        first, last = int(np.searchsorted(shares, tail, "right")), int(np.searchsorted(shares, 1 - tail))
        low = max(low, first * width - histogram.reach)
        high = min(high, (last + 1) * width - histogram.reach)
    if method in ("minmax", "percentile"):
        return make_grid(low, high, signed)
    all_counts = histogram.counts.astype(np.float64)
    if method == "entropy":
        # the zeros of a ReLU are exact on any grid; their spike would only draw the range in until it stood alone
        all_counts[BINS // 2 - 1] = min(all_counts[BINS // 2 - 1], all_counts[BINS // 2 - 2])
        all_counts[BINS // 2] = min(all_counts[BINS // 2], all_counts[BINS // 2 + 1])
    used = all_counts > 0
    if not used.any():
        return make_grid(low, high, signed)
    centres, counts = histogram.centres()[used], all_counts[used]
    loss = {"mse": _squared_error, "entropy": _divergence}[method]
    grids = [make_grid(low * share, high * share, signed) for share in SHARES]
    losses = [loss(centres, counts, grid) for grid in grids]
    return grids[len(losses) - 1 - int(np.argmin(losses[::-1]))]  # of equals the widest


def _squared_error(centres: Array, counts: Array, grid: Grid) -> float:
    return float((counts * (grid.rounded(centres) - centres) ** 2).sum() / counts.sum())


def _divergence(centres: Array, counts: Array, grid: Grid) -> float:
    """KL(P, Q): P the counts with what is clipped added to the edges, Q each level's inner counts spread evenly."""
    levels = np.rint(grid.rounded(centres) / grid.scale).astype(np.int64)
    _, level = np.unique(levels, return_inverse=True)
    inside = np.abs(grid.rounded(centres) - centres) <= grid.scale * 0.5000001
    if not inside.any():
        return float("inf")
    p = np.where(inside, counts, 0.0)
    q_total = np.bincount(level, weights=p)
    bins = np.bincount(level, weights=inside.astype(np.float64))
    q = np.where(inside, (q_total / np.maximum(bins, 1))[level], 0.0)
    places = np.flatnonzero(inside)
    np.add.at(p, places[0], counts[: places[0]].sum())
    np.add.at(p, places[-1], counts[places[-1] + 1 :].sum())
    p, q = p[inside] / p.sum(), q[inside] / q.sum()
    return float((p * np.log(p / q)).sum())


def weight_scales(weight: Array, axis: int, bits: int = 8) -> Array:
    """Symmetric scales for each channel along `axis`, float32 (channels,): largest magnitude / levels, 1 where all are
    0. `bits`: a key of `WEIGHT_LEVELS`.

    Raises `CalibrationError` for a weight that is not finite.
    """
    if not np.isfinite(weight).all():
        raise CalibrationError("a weight is NaN or infinite; take an earlier checkpoint")
    largest = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(1)
    return np.where(largest > 0, largest / WEIGHT_LEVELS[bits], 1.0).astype(np.float32)


def quantize_weight(weight: Array, scales: Array, axis: int, bits: int = 8) -> NDArray[np.int8]:
    """The weight as int8, -127 to 127, or -64 to 64 where `bits` is 7."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    levels = WEIGHT_LEVELS[bits]
    return np.clip(np.rint(weight / scales.reshape(shape)), -levels, levels).astype(np.int8)
