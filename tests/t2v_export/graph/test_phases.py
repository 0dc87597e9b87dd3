from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.checkpoint.config import StageConfig
from t2v_export.graph.from_torch import stage_to_onnx
from t2v_export.graph.phases import is_layout, split_phases
from t2v_export.graph.upsampling import doubling_forms


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def kinds(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


LAYOUT = ["Transpose", "Reshape", "Transpose", "Reshape", "Slice", "Transpose"]
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((1, 4, 5, 6)).astype(np.float32)
LOOK = RANDOM.standard_normal((1, 3, 1, 1)).astype(np.float32)


def transposed(*behind: onnx.NodeProto, output="y", shape=(1, 3, 10, 12), bias=True, **changed) -> onnx.ModelProto:
    """A transposed convolution of x and what stands behind its output `t`, with what a test changes about it."""
    groups = changed.get("group", 1)
    kernel = changed.pop("kernel", 4)
    weights = {
        "w": RANDOM.standard_normal((4, (4 if groups > 1 else 3) // groups, kernel, kernel)).astype(np.float32),
        "b": RANDOM.standard_normal(4 if groups > 1 else 3).astype(np.float32),
        "half": np.float32(0.5),
        "low": np.float32(-0.5),
    }
    node = helper.make_node(
        "ConvTranspose",
        ["x", "w", *(["b"] if bias else [])],
        ["t"],
        name="/up",
        **{"strides": [2, 2], "pads": [1] * 4, **changed},
    )
    graph = helper.make_graph(
        [node, *behind],
        "render",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape),
            helper.make_tensor_value_info("look", TensorProto.FLOAT, LOOK.shape),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def spec_of(model) -> StageSpec:
    inputs, outputs = (
        tuple(TensorSpec(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values)
        for values in (model.graph.input, model.graph.output)
    )
    return StageSpec("render", inputs, outputs)


def same(model) -> onnx.ModelProto:
    """The model in phases, which gives the same values."""
    before = model.SerializeToString()
    made = split_phases(model, spec_of(model))
    assert model.SerializeToString() == before
    feeds = {"x": X, "look": LOOK}
    # borders too; float32 sums in another order
    np.testing.assert_allclose(run(made, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_becomes_a_small_one_and_a_layout_of_the_same_values(bias):
    made = same(transposed(output="t", bias=bias))
    assert kinds(made) == ["Conv", *LAYOUT] and made.graph.node[0].name == "/up"
    assert [is_layout(n) for n in made.graph.node] == [False] + [True] * 6
    weight = next(t for t in made.graph.initializer if t.name == made.graph.node[0].input[1])
    assert list(weight.dims) == [12, 4, 2, 2]


def test_what_follows_pixel_by_pixel_is_done_before_they_are_laid_out():
    behind = [
        helper.make_node("Add", ["look", "t"], ["a"], name="/bias"),
        helper.make_node("LeakyRelu", ["a"], ["r"], name="/leaky", alpha=0.3),
        helper.make_node("Mul", ["r", "half"], ["m"], name="/scale"),
        helper.make_node("Clip", ["m", "low", "half"], ["c"], name="/clip"),
        helper.make_node("Transpose", ["c"], ["y"], name="/last", perm=[0, 2, 3, 1]),
    ]
    made = same(transposed(*behind, shape=(1, 10, 12, 3)))
    # channels are last when pixels are laid out: nothing is left to transpose
    assert kinds(made) == ["Conv", "Tile", "Add", "LeakyRelu", "Mul", "Clip", *LAYOUT[:-1]]
    assert [n.name for n in made.graph.node if n.op_type == "Add"] == ["/bias"]


@pytest.mark.parametrize("operator", ["Softmax", "Concat"])
def test_what_looks_at_more_than_a_pixels_own_number_comes_after(operator):
    more = {"axis": 1} if operator == "Softmax" else {"axis": 0}
    behind = helper.make_node(operator, ["t"], ["y"], name="/behind", **more)
    assert kinds(same(transposed(behind))) == ["Conv", *LAYOUT, operator]


def test_a_sum_of_two_images_comes_after_both_are_laid_out():
    second = helper.make_node("ConvTranspose", ["x", "w"], ["s"], name="/other", strides=[2, 2], pads=[1] * 4)
    add = helper.make_node("Add", ["t", "s"], ["y"], name="/sum")
    assert kinds(same(transposed(second, add))) == ["Conv", *LAYOUT, "Conv", *LAYOUT, "Add"]


def test_a_result_that_two_nodes_read_is_laid_out_once():
    relu = helper.make_node("Relu", ["t"], ["r"], name="/relu")
    behind = [relu, helper.make_node("Add", ["t", "r"], ["y"], name="/sum")]
    assert kinds(same(transposed(*behind))) == ["Conv", *LAYOUT, "Relu", "Add"]


@pytest.mark.parametrize(
    "different",
    [
        {"kernel": 2, "pads": [0] * 4},
        {"kernel": 3, "output_padding": [1, 1]},
        {"output_padding": [1, 1], "shape": (1, 3, 11, 13)},
        {"pads": [0] * 4, "shape": (1, 3, 12, 14)},
        {"group": 4, "shape": (1, 4, 10, 12)},
    ],
)
def test_what_is_no_such_doubling_stays(different):
    model = transposed(output="t", **{"shape": (1, 3, 10, 12), **different})
    assert kinds(same(model)) == ["ConvTranspose"]


@pytest.mark.parametrize("upsample", ["resize", "transpose"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_renderer_gives_the_same_frames_in_every_form(make_checkpoint, residual, upsample):
    draw = StageConfig("upsample", {"channels": [12, 8], "noise_size": 3, "residual": residual, "upsample": upsample})
    checkpoint = load_checkpoint(make_checkpoint(render=draw))
    spec = checkpoint.specs["render"]
    plain = stage_to_onnx(checkpoint.render, spec)
    forms = doubling_forms(plain, spec)
    assert list(forms) == ["built", *(["transposed"] if upsample == "resize" else []), "phases"]
    assert "ConvTranspose" not in kinds(forms["phases"])
    feeds = {t.name: RANDOM.standard_normal(t.shape).astype(np.float32) for t in spec.inputs}
    wanted = run(plain, feeds)[0].astype(int)
    for form in forms.values():
        found = run(form, feeds)[0]
        # a level on a half may round the other way
        assert np.abs(wanted - found).max() <= 1 and (wanted != found).mean() < 1e-3
