"""Rounding that compensates its own errors: each weight takes up the error of the weights rounded before it.

The method is GPTQ (Frantar et al., ICLR 2023), after optimal brain surgery. From the second moments of a layer's inputs
it knows how the weights not yet rounded best undo the error of a rounded one. Inputs of an image are much alike from
place to place, so little error is left in flat areas. In a transposed convolution the places of the kernel belong to
different kinds of output pixel. Each kind is a problem of its own, so that no pattern shows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from t2v_calibration.ranges import WEIGHT_LEVELS, quantize_weight, weight_scales
from t2v_export.graph.operators import out_axis

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
Place = tuple[slice, ...]

ROWS = 64
"""Places of one sample at which a layer is observed. They are much alike, and samples are many."""

WAITING = 1024
"""Places whose moments are added in one product, which reads and writes the moments once."""

MAX_INPUTS = 4096
"""The most inputs of an output. Their second moments take 128 MiB. A layer with more is rounded plainly."""

DAMPING = 0.01
BLOCK = 64


class Moments:
    """Second moments of a layer's inputs, gathered by `add` and used by `round`.

    The weight falls into parts that never meet in one output: in a transposed convolution, one part for each place
    modulo the stride. `of` gives None for a layer that is grouped, dilated or of more than `MAX_INPUTS`.
    """

    def __init__(self, node: ir.Node, weight: NDArray[np.float32]) -> None:
        self._node, self._weight = node, weight
        self._parts = [_Part(part, np.zeros((size, size))) for part, size in self._sizes()]
        self._random = np.random.Generator(np.random.PCG64(0))

    @classmethod
    def of(cls, node: ir.Node, weight: NDArray[np.float32]) -> Moments | None:
        has = node.attributes
        plain = has.get_int("group", 1) == 1 and set(has.get_ints("dilations", [1])) == {1}
        plain = plain and not has.get_int("transA", 0)
        small = weight.size <= MAX_INPUTS * weight.shape[out_axis(node)]
        return cls(node, weight) if plain and small and weight.ndim in (2, 4) else None

    def add(self, value: NDArray[np.generic]) -> None:
        """Take in one input of the layer."""
        for part in self._parts:
            part.add(self._rows(part.place, np.asarray(value, np.float32)))

    def round(self, bits: Collection[int]) -> dict[int, NDArray[np.int8]]:
        """The weight as int8 in its own layout, by number of bits, in the scales of `weight_scales`.

        Raises `CalibrationError` if a weight is not finite.
        """
        axis = out_axis(self._node)
        scales = {number: weight_scales(self._weight, axis, number) for number in bits}
        rounded = {number: quantize_weight(self._weight, scales[number], axis, number) for number in bits}
        for part in self._parts:
            moments = part.gathered()
            if not moments.any():
                continue
            weight = np.moveaxis(self._weight[part.place], axis, 0)
            flat, factor = weight.reshape(len(weight), -1), _factor(moments)
            for number in bits:
                made = compensated(flat, factor, scales[number].astype(np.float64), WEIGHT_LEVELS[number])
                np.moveaxis(rounded[number][part.place], axis, 0)[...] = made.reshape(weight.shape)
        return rounded

    def _sizes(self) -> Iterator[tuple[Place, int]]:
        """The parts of the weight, and the number of inputs that each sums over."""
        if self._weight.ndim == 2:
            yield (slice(None), slice(None)), self._weight.shape[1 - out_axis(self._node)]
        elif self._node.op_type == "Conv":
            yield (slice(None),) * 4, int(np.prod(self._weight.shape[1:]))
        else:
            down, right = self._node.attributes.get_ints("strides", [1, 1])
            for y in range(min(down, self._weight.shape[2])):
                for x in range(min(right, self._weight.shape[3])):
                    part = slice(None), slice(None), slice(y, None, down), slice(x, None, right)
                    yield part, int(np.prod(self._weight[part][:, 0].shape))

    def _rows(self, part: Place, value: Rows) -> Rows:
        """The inputs that the part's weights meet, (places, inputs), in the weights' order."""
        if self._weight.ndim == 2:
            rows = value.reshape(-1, value.shape[-1])
            return rows[self._some(len(rows))]
        height, width = self._weight[part].shape[2:]
        if value.shape[2] < height or value.shape[3] < width:
            return np.zeros((0, value.shape[1] * height * width), np.float32)
        windows = sliding_window_view(value, (height, width), (2, 3))[0]  # (inputs, down, right, height, width)
        if self._node.op_type == "ConvTranspose":  # tap m of a part reads the pixel m before
            windows = windows[..., ::-1, ::-1]
        down, right = windows.shape[1:3]
        some = self._some(down * right)
        met: Rows = windows[:, some // right, some % right].swapaxes(0, 1).reshape(len(some), -1)
        return met

    def _some(self, count: int) -> NDArray[np.int64]:
        return self._random.permutation(count)[:ROWS] if count > ROWS else np.arange(count)


class _Part:
    """The weights at `place`, and the second moments of their inputs."""

    def __init__(self, place: Place, moments: Array) -> None:
        self.place, self._moments = place, moments
        self._waiting: list[Rows] = []

    def add(self, rows: Rows) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= WAITING:
            self.gathered()

    def gathered(self) -> Array:
        """The moments of all that was added."""
        if self._waiting:
            rows = np.concatenate(self._waiting).astype(np.float64)
            self._moments += rows.T @ rows
            self._waiting.clear()
        return self._moments


def _factor(moments: Array) -> Array:
    """Upper triangular; the inverse of the moments, damped, is factor.T @ factor."""
    count = len(moments)
    damped = moments + np.eye(count) * (DAMPING * np.trace(moments) / count + 1e-12)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)


def compensated(weight: NDArray[np.floating], factor: Array, scales: Array, levels: int) -> NDArray[np.int8]:
    """Weights (outputs, inputs) as whole numbers of `scales` (outputs,), given the `_factor` of the inputs' moments."""
    left = weight.astype(np.float64)
    count = left.shape[1]
    made = np.empty(left.shape, np.int8)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        errors = np.empty((len(left), stop - start))
        for i in range(start, stop):
            whole = np.clip(np.rint(left[:, i] / scales), -levels, levels)
            made[:, i] = whole
            errors[:, i - start] = (left[:, i] - whole * scales) / factor[i, i]
            left[:, i + 1 : stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return made
