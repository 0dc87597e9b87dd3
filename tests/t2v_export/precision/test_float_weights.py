from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.device.profile import load_profile
from t2v_edge.errors import UsageError
from t2v_export.exporter.export import export_checkpoint
from t2v_export.graph.lint import lint, target_of
from t2v_export.precision.float_weights import float_weights
from t2v_export.recipe import parse_recipe
from tests.t2v_export.quantize.test_qdq import tiny_options
from tests.t2v_export.quantize_samples import SPEC, nodes_of, quantized, run, samples, upsampler, weights


def test_same_numbers_from_float_weights_behind_q_and_dq():
    model = quantized(upsampler(), "int8")
    before = model.SerializeToString()
    made = float_weights(model, SPEC)
    assert model.SerializeToString() == before
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    made_by = {o: n for n in made.graph.node for o in n.output}
    for name in ("/conv1", "/conv2", "/conv3", "/conv4"):
        q = made_by[made_by[nodes_of(made)[name].input[1]].input[0]]
        assert q.op_type == "QuantizeLinear" and kinds[q.input[0]] == TensorProto.FLOAT
    assert lint(made, target_of("int8", 17)) == ()
    for feeds in samples(2):
        np.testing.assert_array_equal(run(made, feeds), run(model, feeds))


@pytest.mark.parametrize("axis", [0, 1])
def test_every_whole_number_comes_back_at_any_scale(axis):
    random = np.random.default_rng(0)
    whole = random.integers(-127, 128, (64, 64)).astype(np.int8)
    scales = (10.0 ** random.uniform(-9, 3, 64)).astype(np.float32)
    given = {"w": whole, "s": scales, "z": np.zeros(64, np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="/dq", axis=axis),
            helper.make_node("MatMul", ["x", "wd"], ["y"], name="/mm"),
        ],
        "text",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(a, n) for n, a in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = float_weights(model, SPEC)
    made.graph.output.append(onnx.ValueInfoProto(name="wd.int8"))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["wd.int8"], {"x": weights(1, 64)})[0], whole)


def test_recipe_asks_for_them_stage_by_stage(make_checkpoint, tmp_path):
    def exported(name, **changes):
        options = tiny_options(**changes)
        return export_checkpoint(make_checkpoint(), tmp_path / name, load_profile("jetson-orin-nano-8gb"), options)

    plain, asked = exported("plain"), exported("asked", float_weights=["text"])
    assert asked.report["bytes"]["int8"]["text"] > plain.report["bytes"]["int8"]["text"]
    same = {(v, s) for v, of in plain.report["bytes"].items() for s in of} - {("int8", "text")}
    assert all(asked.report["bytes"][v][s] == plain.report["bytes"][v][s] for v, s in same)
    with pytest.raises(UsageError, match="float_weights has 'sound'"):
        parse_recipe({"name": "x", "pass": [{"kind": "quantize", "float_weights": ["sound"]}]}, "test")
