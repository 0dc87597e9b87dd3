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
from t2v_export.graph.upsampling import REPEATING, transpose_upsampling

SPEC = StageSpec("render", (TensorSpec("x", (1, 4, 5, 6)),), (TensorSpec("y", (1, 3, 10, 12)),))


def doubling(way=("asymmetric", "floor"), second_reader=False, scales=(1, 1, 2, 2), **conv) -> onnx.ModelProto:
    """resize -> conv 3x3 with a bias, with what a test changes about it."""
    random = np.random.default_rng(0)
    groups = conv.get("group", 1)
    weights = {
        "w": random.standard_normal((4 if groups > 1 else 3, 4 // groups, 3, 3)).astype(np.float32),
        "b": random.standard_normal(4 if groups > 1 else 3).astype(np.float32),
        "scales": np.array(scales, np.float32),
    }
    nodes = [
        helper.make_node(
            "Resize",
            ["x", "", "scales"],
            ["big"],
            name="/resize",
            mode="nearest",
            coordinate_transformation_mode=way[0],
            nearest_mode=way[1],
        ),
        helper.make_node("Conv", ["big", "w", "b"], ["y"], name="/conv", **{"pads": [1] * 4, **conv}),
    ]
    outputs = ["y"]
    if second_reader:
        nodes.append(helper.make_node("Relu", ["big"], ["z"], name="/relu"))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "render",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 6])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def spec_of(model) -> StageSpec:
    return StageSpec(
        "render",
        SPEC.inputs,
        tuple(TensorSpec(o.name, tuple(d.dim_value for d in o.type.tensor_type.shape.dim)) for o in model.graph.output),
    )


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def kinds(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("way", sorted(REPEATING))
def test_a_doubling_and_its_convolution_become_one_transposed_convolution_of_the_same_values(way):
    model = doubling(way)
    before = model.SerializeToString()
    made = transpose_upsampling(model, spec_of(model))
    assert kinds(made) == ["ConvTranspose"] and made.graph.node[0].name == "/conv"
    assert {t.name for t in made.graph.initializer} == {"w.transposed", "b"}
    assert model.SerializeToString() == before
    x = np.random.default_rng(1).standard_normal((1, 4, 5, 6)).astype(np.float32)
    # borders too; float32 sums in another order
    np.testing.assert_allclose(run(made, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "different",
    [
        {"way": ("align_corners", "floor")},
        {"way": ("asymmetric", "ceil")},
        {"second_reader": True},
        {"scales": (1, 1, 2, 3)},
        {"group": 4},
        {"pads": [0] * 4},
        {"strides": [2, 2]},
        {"pads": [2] * 4, "dilations": [2, 2]},
    ],
)
def test_what_is_not_that_pair_stays(different):
    model = doubling(**different)
    made = transpose_upsampling(model, spec_of(model))
    assert kinds(made) == kinds(model)


@pytest.mark.parametrize("residual", [False, True])
def test_a_renderer_gives_the_same_frames(make_checkpoint, residual):
    draw = StageConfig("upsample", {"channels": [12, 8], "noise_size": 3, "residual": residual})
    checkpoint = load_checkpoint(make_checkpoint(render=draw))
    spec = checkpoint.specs["render"]
    plain = stage_to_onnx(checkpoint.render, spec)
    made = transpose_upsampling(plain, spec)
    doublings = kinds(plain).count("Resize") - kinds(made).count("Resize")
    assert doublings == kinds(made).count("ConvTranspose") == 2
    random = np.random.default_rng(0)
    feeds = {t.name: random.standard_normal(t.shape).astype(np.float32) for t in spec.inputs}
    wanted, found = run(plain, feeds)[0], run(made, feeds)[0]
    # a level on a half may round the other way
    assert np.abs(wanted.astype(int) - found).max() <= 1 and (wanted != found).mean() < 1e-3
