from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.graph.clean import levels_graph
from t2v_export.graph.lint import lint, target_of
from t2v_export.graph.phases import split_phases
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.qdq import quantize
from tests.t2v_export.quantize_samples import (
    ALL,
    SPEC,
    constants_of,
    model_of,
    nodes_of,
    quantized,
    run,
    run_all,
    samples,
    weights,
)


def ending(last: str, clip=(0.0, 255.0), moved=True) -> onnx.ModelProto:
    """conv -> relu -> conv of the kind `last` -> sigmoid or not -> clip -> transpose or not -> round -> uint8."""
    up = last == "ConvTranspose"
    where = {"strides": [2, 2], "pads": [1] * 4} if up else {"pads": [1] * 4}
    size = 12 if up else 6
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="/conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="/relu1"),
        helper.make_node("ConvTranspose" if up else "Conv", ["r1", "w2", "b2"], ["c2"], name="/conv2", **where),
        *([helper.make_node("Sigmoid", ["c2"], ["s"], name="/sigmoid")] if last == "Sigmoid" else []),
        helper.make_node("Clip", ["s" if last == "Sigmoid" else "c2", "low", "high"], ["k"], name="/clip"),
        *([helper.make_node("Transpose", ["k"], ["t"], name="/nhwc", perm=[0, 2, 3, 1])] if moved else []),
        helper.make_node("Round", ["t" if moved else "k"], ["o"], name="/round"),
        helper.make_node("Cast", ["o"], ["frame"], name="/cast", to=TensorProto.UINT8),
    ]
    w2 = weights(5, 3, 4, 4, seed=1) if up else weights(3, 5, 3, 3, seed=1)
    constants = {
        "w1": weights(5, 4, 3, 3), "w2": 8 * w2, "b2": np.full(3, 100, np.float32),
        "low": np.float32(clip[0]), "high": np.float32(clip[1]),
    }  # fmt: skip
    shape = [1, size, size, 3] if moved else [1, 3, size, size]
    made = model_of(nodes, constants, {"x": [1, 4, 6, 6]}, {"frame": shape})
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    return made


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("last", ["Conv", "ConvTranspose"])
def test_a_convolution_that_gives_levels_ends_in_8_bits_on_the_levels_themselves(last, moved):
    model = ending(last, moved=moved)
    shape = tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim)
    spec = StageSpec("render", SPEC.inputs, (TensorSpec("frame", shape, "uint8"),))
    model = split_phases(model, spec)
    options = replace(ALL, keep_last=True)
    assert "/conv2" in make_plan(model, spec, options).layers
    unsigned, signed = (quantized(model, v, options, spec=spec) for v in ("int8-u8", "int8"))
    kinds = [n.op_type for n in unsigned.graph.node]
    assert not {"Round", "Cast", "Clip"} & set(kinds)
    known, q = constants_of(unsigned), nodes_of(unsigned)["/q/levels"]
    assert known[q.input[1]] == 1.0 and known[q.input[2]] == 0
    assert [n.op_type for n in signed.graph.node][-2:] == ["Round", "Cast"]  # TensorRT knows uint8 at the border only
    for made, variant in ((unsigned, "int8-u8"), (signed, "int8")):
        assert lint(made, target_of(variant, 17)) == ()
        errors = [run(made, feeds).astype(float) - run(model, feeds) for feeds in samples(8)]
        assert run(made, samples(1)[0]).dtype == np.uint8
        assert 0 < np.abs(errors).mean() < 3  # of 255 levels, some clipped at either end
    (frame, levels) = run_all(levels_graph(unsigned), samples(1)[0])
    np.testing.assert_array_equal(frame, levels)


@pytest.mark.parametrize("different", [{"last": "Sigmoid"}, {"last": "Conv", "clip": (0.0, 254.0)}])
def test_pixels_that_are_squashed_or_clipped_otherwise_stay_in_float(different):
    model = ending(**different)
    spec = StageSpec("render", SPEC.inputs, (TensorSpec("frame", (1, 6, 6, 3), "uint8"),))
    options = replace(ALL, keep_last=True)
    assert make_plan(model, spec, options).kept == ("/conv2",)
    assert "/round" in nodes_of(quantized(model, "int8-u8", options, spec=spec))


def test_a_sum_in_front_of_a_relu_spends_no_levels_on_what_becomes_zero():
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="/conv1", pads=[1] * 4),
        helper.make_node("ReduceMean", ["x"], ["mean"], name="/mean", axes=[2, 3]),
        helper.make_node("Conv", ["mean", "w4"], ["bias"], name="/conv4"),
        helper.make_node("Add", ["c1", "bias"], ["sum"], name="/add"),
        helper.make_node("Relu", ["sum"], ["r1"], name="/relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="/conv2", pads=[1] * 4),
    ]
    given = {
        "w1": weights(5, 4, 3, 3), "b1": np.full(5, -12, np.float32), "w2": weights(3, 5, 3, 3, seed=1),
        "w4": weights(5, 4, 1, 1, seed=3),
    }  # fmt: skip
    model = model_of(nodes, given, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 6, 6]})
    spec = StageSpec("render", SPEC.inputs, (TensorSpec("y", (1, 3, 6, 6)),))
    plan = make_plan(model, spec, ALL)
    assert ("c1", "bias") in plan.added
    seen = observe(model, samples(), *observed_tensors(model, plan))
    least, lifted = seen.histograms["c1"].low, seen.histograms["bias"].high
    assert least < -1.5 * lifted < 0
    made = quantize(model, spec, plan, seen, ALL, "int8-u8")
    known = constants_of(made)
    lowest = -float(known["c1.scale"]) * int(known["c1.zero_point"])
    assert -1.05 * lifted <= lowest <= -0.95 * lifted
    plain = constants_of(quantize(model, spec, replace(plan, added=()), seen, ALL, "int8-u8"))
    assert known["c1.scale"] < 0.8 * plain["c1.scale"]
    for feeds in samples(4):
        assert np.abs(run(made, feeds) - run(model, feeds)).mean() < 0.03 * np.abs(run(model, feeds)).max()


def test_phases_are_laid_out_in_8_bits_between_layers():
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w1"], ["c1"], name="/up", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="/relu"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="/conv", pads=[1] * 4),
    ]
    given = {"w1": weights(4, 5, 4, 4), "w2": weights(3, 5, 3, 3, seed=1)}
    model = split_phases(model_of(nodes, given, {"x": [1, 4, 6, 6]}, {"y": [1, 3, 12, 12]}), SPEC)
    for variant, quantizers in (("int8-u8", {"x", "r1/phases", "r1", "y"}), ("int8", {"x", "r1"})):
        made = quantized(model, variant)
        steps = [n for n in made.graph.node if n.op_type == "QuantizeLinear"]
        assert {n.input[0] for n in steps} == quantizers
        known = constants_of(made)
        grids = {n.input[0]: (known[n.input[1]], known[n.input[2]]) for n in steps}
        assert variant == "int8" or grids["r1"] == grids["r1/phases"]
        assert (
            np.abs(run(made, samples(1)[0]) - run(model, samples(1)[0])).mean()
            < 0.05 * np.abs(run(model, samples(1)[0])).max()
        )
