"""Observation: a float32 graph run on a calibration set once, histograms and channel means of its tensors gathered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from t2v_calibration.calibration_set import CalibrationError, Feeds
from t2v_calibration.ranges import Histogram
from t2v_export.quantize.compensate import Moments


@dataclass(frozen=True)
class Observations:
    """Histograms by tensor, by layer the mean of each of its input's channels, ranks by tensor; and by layer and bits
    the rounded weights, where they were asked for.
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
    """Run the samples and watch `tensors`, and of each layer in `inputs` its (input tensor, channel axis).

    The layers' weights are rounded to `bits`, each number of them, so that they make good their own errors.

    One pass, one sample in memory at a time. `advance` is called after each. Raises `CalibrationError` for no
    samples and for NaN or infinity.
    """
    if not samples:
        raise CalibrationError("calibration: there are no samples; calibrate with more captions or steps")
    model = onnx.shape_inference.infer_shapes(model)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*model.graph.value_info, *model.graph.input]}
    watched = list(dict.fromkeys([*tensors, *(name for name, _ in inputs.values())]))
    given = {i.name for i in model.graph.input}
    kept = {o.name for o in model.graph.output}
    made = [name for name in watched if name not in given]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name not in kept)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    histograms = {name: Histogram() for name in tensors}
    moments = _moments(model, inputs) if bits else {}
    axes = dict.fromkeys(inputs.values())
    sums: dict[tuple[str, int], NDArray[np.float64]] = {}
    for feeds in samples:
        values = {**feeds, **dict(zip(made, session.run(made, dict(feeds))))} if made else dict(feeds)
        for name, histogram in histograms.items():
            histogram.add(name, values[name])
        for key in axes:
            mean = _channel_mean(values[key[0]], key[1])
            sums[key] = sums[key] + mean if key in sums else mean
        for layer, found in moments.items():
            found.add(values[inputs[layer][0]])
        advance()
    means = {layer: sums[key] / len(samples) for layer, key in inputs.items()}
    rounded = {
        (layer, number): weight for layer, found in moments.items() for number, weight in found.round(bits).items()
    }
    return Observations(histograms, means, ranks, rounded)


def _moments(model: onnx.ModelProto, layers: Collection[str]) -> dict[str, Moments]:
    weights = {t.name: t for t in model.graph.initializer}
    found = {
        node.name: Moments.of(node, numpy_helper.to_array(weights[node.input[1]]))
        for node in model.graph.node
        if node.name in layers
    }
    return {name: moments for name, moments in found.items() if moments is not None}


def _channel_mean(value: NDArray[np.generic], axis: int) -> NDArray[np.float64]:
    axis %= value.ndim
    return np.asarray(value.mean(tuple(i for i in range(value.ndim) if i != axis), dtype=np.float64))
