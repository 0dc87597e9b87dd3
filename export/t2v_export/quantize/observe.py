"""Observation of a float32 graph on a calibration set: histograms and channel means of its tensors, in one run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from t2v_calibration.calibration_set import CalibrationError, Feeds
from t2v_calibration.ranges import Histogram
from t2v_export.graph import view
from t2v_export.quantize.compensate import Moments


@dataclass(frozen=True)
class Observations:
    """The observations of one graph.

    `histograms` and `ranks`: by tensor. `means`: by layer, the mean of each channel of its input. `rounded`: by layer
    and number of bits, the weights with compensated rounding, if they were asked for.
    """

    histograms: Mapping[str, Histogram]
    means: Mapping[str, NDArray[np.float64]]
    ranks: Mapping[str, int]
    rounded: Mapping[tuple[str, int], NDArray[np.int8]] = field(default_factory=dict)


def observe(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    tensors: Sequence[str],
    inputs: Mapping[str, tuple[str, int]],
    advance: Callable[[], object] = lambda: None,
    bits: Collection[int] = (),
) -> Observations:
    """Run the samples once, and observe `tensors` and the inputs of layers.

    `inputs`: by layer, its input tensor and channel axis. `bits`: the layers' weights are rounded to each of these
    numbers of bits with compensation. One sample is in memory at a time; `advance` is called after each. Raises
    `CalibrationError` for no samples and for NaN or infinity.
    """
    if not samples:
        raise CalibrationError("calibration: there are no samples; calibrate with more captions or steps")
    graph = view.read(model, typed=True).graph
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    ranks = {view.name_of(value): len(value.shape) for value in values if value.shape is not None}
    watched = list(dict.fromkeys([*tensors, *(name for name, _ in inputs.values())]))
    given = {value.name for value in graph.inputs}
    made = [name for name in watched if name not in given]
    session = view.open_session(view.with_outputs(model, made))
    histograms = {name: Histogram() for name in tensors}
    moments = _moments(graph, inputs) if bits else {}
    axes = dict.fromkeys(inputs.values())
    sums: dict[tuple[str, int], NDArray[np.float64]] = {}
    for feeds in samples:
        seen = {**feeds, **view.run(session, made, feeds)}
        for name, histogram in histograms.items():
            histogram.add(name, seen[name])
        for key in axes:
            mean = _channel_mean(seen[key[0]], key[1])
            sums[key] = sums[key] + mean if key in sums else mean
        for layer, found in moments.items():
            found.add(seen[inputs[layer][0]])
        advance()
    means = {layer: sums[key] / len(samples) for layer, key in inputs.items()}
    rounded = {
        (layer, number): weight for layer, found in moments.items() for number, weight in found.round(bits).items()
    }
    return Observations(histograms, means, ranks, rounded)


def _moments(graph: ir.Graph, layers: Collection[str]) -> dict[str, Moments]:
    found = {node.name or "": Moments.of(node, view.constant(node, 1)) for node in graph if node.name in layers}
    return {name: moments for name, moments in found.items() if moments is not None}


def _channel_mean(value: NDArray[np.generic], axis: int) -> NDArray[np.float64]:
    axis %= value.ndim
    return np.asarray(value.mean(tuple(i for i in range(value.ndim) if i != axis), dtype=np.float64))
