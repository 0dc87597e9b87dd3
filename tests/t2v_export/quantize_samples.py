"""Small graphs and their samples, for the tests of quantization."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import quantize
from t2v_export.recipe import Quantize

ALL = Quantize(method="minmax", keep_first=False, keep_last=False)
SPEC = StageSpec("render", (TensorSpec("x", (1, 4, 6, 6)),), (TensorSpec("y", (1, 3, 12, 12)),))


def model_of(nodes, weights, inputs, outputs) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "render",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights whose channels differ widely in size along every axis."""
    made = np.random.default_rng(seed).standard_normal(shape)
    for axis, size in enumerate(shape[:2]):
        steps = np.linspace(0.2, 2, size).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        made = made * steps
    return made.astype(np.float32)


def upsampler() -> onnx.ModelProto:
    """conv -> relu -> concat with x -> resize -> conv2 -> + a bias for the frame -> relu -> conv3."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="/conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="/relu1"),
        helper.make_node("Concat", ["r1", "x"], ["both"], name="/concat", axis=1),
        helper.make_node("Resize", ["both", "", "scales"], ["big"], name="/resize", mode="nearest"),
        helper.make_node("Conv", ["big", "w2", "b2"], ["c2"], name="/conv2", pads=[1] * 4),
        helper.make_node("ReduceMean", ["x"], ["mean"], name="/mean", axes=[2, 3]),
        helper.make_node("Conv", ["mean", "w4"], ["bias"], name="/conv4"),
        helper.make_node("Add", ["c2", "bias"], ["sum"], name="/add"),
        helper.make_node("Relu", ["sum"], ["r2"], name="/relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="/conv3", pads=[1] * 4),
    ]
    constants = {
        "w1": weights(5, 4, 3, 3),
        "b1": np.arange(5, dtype=np.float32),
        "w2": weights(6, 9, 3, 3, seed=1) / 4,
        "b2": np.zeros(6, np.float32),
        "w3": weights(3, 6, 3, 3, seed=2) / 4,
        "w4": weights(6, 4, 1, 1, seed=3),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return model_of(nodes, constants, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 12, 12]})


def samples(count: int = 32, shape: tuple[int, ...] = (1, 4, 6, 6), mean: float = 0.5) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": (random.standard_normal(shape) + mean).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime's engine does
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def run_all(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def quantized(model, variant, options=ALL, fed=None, spec=SPEC) -> onnx.ModelProto:
    plan = make_plan(model, spec, options)
    seen = observe(model, samples() if fed is None else fed, *observed_tensors(model, plan))
    return quantize(model, spec, plan, seen, options, variant)


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}
