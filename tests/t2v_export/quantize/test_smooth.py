from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import INT8_VARIANTS, quantize
from t2v_export.quantize.sensitivity import SensitivityMetric
from t2v_export.quantize.smooth import smooth
from t2v_export.recipe import Quantize
from tests.t2v_export.quantize_samples import constants_of

SPEC = StageSpec("text", (TensorSpec("x", (1, 5, 16)),), (TensorSpec("condition", (1, 5, 16)),))
OPTIONS = Quantize(method="minmax", keep_first=False, keep_last=False)


def block(residual: bool = True) -> onnx.ModelProto:
    """LayerNorm with outlier channels -> two MatMuls, and a residual sum of the LayerNorm where wanted."""
    random = np.random.default_rng(0)
    gain = np.where(np.arange(16) == 3, 60.0, 1.0)
    given = {
        "gain": gain,
        "shift": random.standard_normal(16) * gain,
        "w1": random.standard_normal((16, 16)) / np.where(np.arange(16) == 3, 30.0, 1.0)[:, None],
        "w2": random.standard_normal((16, 16)) / np.where(np.arange(16) == 3, 30.0, 1.0)[:, None],
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="/norm"),
        helper.make_node("MatMul", ["n", "w1"], ["a"], name="/one"),
        helper.make_node("MatMul", ["n", "w2"], ["b"], name="/two"),
        helper.make_node("Add", ["a", "b"], ["s" if residual else "condition"], name="/sum"),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["s", "n"], ["condition"], name="/residual"))
    made = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 16])],
        [helper.make_tensor_value_info("condition", TensorProto.FLOAT, [1, 5, 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(seed: int, count: int = 32) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 5, 16)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("residual", [True, False])
def test_smoothing_is_the_same_function_and_leaves_the_input_alone(residual):
    model = block(residual)
    before = model.SerializeToString()
    made = smooth(model, ("/one", "/two"), samples(0), 0.5)
    onnx.checker.check_model(made, full_check=True)
    assert model.SerializeToString() == before
    wanted = run(model, samples(1)[0])
    np.testing.assert_allclose(run(made, samples(1)[0]), wanted, atol=1e-5 * np.abs(wanted).max())
    norms = [n.name for n in made.graph.node if n.op_type == "LayerNormalization"]
    assert norms == (["/norm", "/norm.smooth"] if residual else ["/norm.smooth"])


def test_factors_are_those_of_the_paper():
    made = constants_of(smooth(block(), ("/one", "/two"), samples(0), 0.5))
    model = block()
    given = constants_of(model)
    model.graph.output.extend([helper.make_empty_tensor_value_info("n")])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = np.max([np.abs(session.run(["n"], feeds)[0]).max((0, 1)) for feeds in samples(0)], axis=0)
    heaviest = np.maximum(np.abs(given["w1"]).max(1), np.abs(given["w2"]).max(1))
    np.testing.assert_allclose(made["one.smooth"] / given["w1"], np.sqrt(largest / heaviest)[:, None] * np.ones(16),
                               rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("variant", INT8_VARIANTS)
def test_smoothed_graph_loses_less_in_int8(variant):
    judge = SensitivityMetric(block(), SPEC, samples(1, 8))

    def error(model: onnx.ModelProto) -> float:
        plan = make_plan(model, SPEC, OPTIONS)
        seen = observe(model, samples(0), *observed_tensors(model, plan))
        return judge(quantize(model, SPEC, plan, seen, OPTIONS, variant))

    assert error(smooth(block(), ("/one", "/two"), samples(0), 0.5)) < 0.5 * error(block())


def test_graph_without_a_layer_norm_before_a_product_is_left_as_it_is():
    model = block()
    assert smooth(model, (), samples(0), 0.5).SerializeToString() == model.SerializeToString()
