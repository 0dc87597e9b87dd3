from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.errors import SpecError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.graph.lint import check_lint, lint, target_of
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import quantize
from t2v_export.recipe import Quantize

SPEC = StageSpec("render", (TensorSpec("x", (1, 2, 4, 4)),), (TensorSpec("y", (1, 3, 4, 4)),))
OPTIONS = Quantize(keep_first=False, keep_last=False)


def sound(variant: str) -> onnx.ModelProto:
    """A clean Q/DQ graph: /up, a transposed convolution; /concat of it and x; /conv."""
    random = np.random.default_rng(0)
    given = {
        "w1": random.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "w2": random.standard_normal((3, 6, 3, 3)).astype(np.float32),
        "b2": np.ones(3, np.float32),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w1"], ["u"], name="/up"),
        helper.make_node("Concat", ["u", "x"], ["both"], name="/concat", axis=1),
        helper.make_node("Conv", ["both", "w2", "b2"], ["y"], name="/conv", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "render",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(w, n) for n, w in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plan = make_plan(model, SPEC, OPTIONS)
    feeds = [{"x": random.standard_normal((1, 2, 4, 4)).astype(np.float32)} for _ in range(8)]
    seen = observe(model, feeds, *observed_tensors(model, plan))
    return quantize(model, SPEC, plan, seen, OPTIONS, variant)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def replace(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), name))


def unquantize(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 6, 3, 3), np.float32), "plain"))
    node_of(model, "/conv").input[1] = "plain"


def read_float(model: onnx.ModelProto) -> None:
    node_of(model, "/conv").input[0] = "both"


def set_axis(model: onnx.ModelProto) -> None:
    node_of(model, "/dq/up.weight").attribute[0].i = 0


FAULTS = {
    "zero-point of an activation": (
        lambda m: replace(m, "x.zero_point", lambda z: z + np.int8(3)),
        "int8",
        "/q/x: zero-point: 3",
    ),
    "zero-point of a weight": (
        lambda m: replace(m, "conv.weight.zero_point", lambda z: z + np.int8(1)),
        "int8-u8",
        "/dq/conv.weight: zero-point: 1",
    ),
    "scale of nothing": (lambda m: replace(m, "both.scale", lambda s: s * 0), "int8", "/q/both: scale"),
    "weight axis": (set_axis, "int8", "/up: weight axis: 0, the outputs are along 1"),
    "leftover": (unquantize, "int8", "/conv: leftover"),
    "float input": (read_float, "int8", "/conv: input: its weights are int8"),
    "bias scale": (lambda m: replace(m, "conv.bias.scale", lambda s: s * 2), "int8-u8", "/conv: bias scale"),
    "scales apart": (lambda m: replace(m, "both.scale", lambda s: s * 2), "int8", "/concat: shared scale: /dq/u"),
}


@pytest.mark.parametrize("variant", ["int8", "int8-u8"])
def test_what_quantize_makes_is_clean(variant):
    assert lint(sound(variant), target_of(variant, 17)) == ()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found_and_its_node_named(fault):
    plant, variant, wanted = FAULTS[fault]
    model = sound(variant)
    plant(model)
    found = [str(f) for f in lint(model, target_of(variant, 17))]
    assert any(text.startswith(wanted) for text in found), found


def test_each_variant_is_refused_by_the_other_target():
    unsigned = {f.rule for f in lint(sound("int8-u8"), target_of("int8", 17))}
    assert {"activation type", "bias", "zero-point"} <= unsigned
    assert {f.rule for f in lint(sound("int8"), target_of("int8-u8", 17))} == {"activation type"}


def test_opset_cap_and_the_error_that_names_the_first_fault():
    assert [f.rule for f in lint(sound("int8"), target_of("int8", 16))] == ["opset"]
    with pytest.raises(SpecError, match="int8 render: render: opset: 17, at most 16"):
        check_lint(sound("int8"), target_of("int8", 16), "render")


def test_layer_kept_on_purpose_is_no_leftover():
    model = sound("int8")
    unquantize(model)
    assert lint(model, target_of("int8", 17), ("/conv",)) == ()
