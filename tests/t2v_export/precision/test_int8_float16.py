from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import verify_bundle
from t2v_edge.device.profile import load_profile
from t2v_edge.errors import SpecError
from t2v_edge.pipeline import Pipeline
from t2v_export.exporter.export import export_checkpoint
from t2v_export.graph.lint import lint, target_of
from t2v_export.graph.opset import raise_opset
from t2v_export.precision.float16 import rounding_twin, store_half
from t2v_export.precision.int8_float16 import LEAST_SCALE, compute_half_int8, half_scales
from tests.t2v_export.quantize.test_qdq import tiny_options
from tests.t2v_export.quantize_samples import ALL, SPEC, model_of, nodes_of, quantized, run, samples, upsampler, weights


def kinds_of(model: onnx.ModelProto) -> dict[str, int]:
    typed = onnx.shape_inference.infer_shapes(model)
    found = {v.name: v.type.tensor_type.elem_type for v in [*typed.graph.value_info, *typed.graph.input]}
    return {**found, **{t.name: t.data_type for t in typed.graph.initializer}}


def exact(model: onnx.ModelProto, feeds) -> np.ndarray:
    """What a float16 graph gives with each rounding in the open."""
    return run(rounding_twin(model), feeds)


def test_layers_compute_in_float16_from_the_same_whole_numbers():
    signed = quantized(upsampler(), "int8")
    before = signed.SerializeToString()
    made = compute_half_int8(signed, SPEC)
    assert signed.SerializeToString() == before and made.opset_import[0].version == 19
    assert lint(made, target_of("int8-fp16", 19)) == ()
    kinds = kinds_of(made)
    for name in ("/conv1", "/conv2", "/conv3", "/conv4"):
        assert {kinds[i] for i in nodes_of(made)[name].input} == {TensorProto.FLOAT16}
    whole = {tuple(t.dims): numpy_helper.to_array(t) for t in made.graph.initializer if t.data_type == TensorProto.INT8}
    for tensor in signed.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            np.testing.assert_array_equal(whole[tuple(tensor.dims)], numpy_helper.to_array(tensor))
    for feeds in samples(4):
        wanted = run(signed, feeds)
        # scales and sums have 11 bits: a number near the border of two levels may take the other
        assert 0 < np.abs(exact(made, feeds) - wanted).mean() < 0.01 * np.abs(wanted).max()
        np.testing.assert_allclose(run(made, feeds), exact(made, feeds), atol=0.03 * np.abs(wanted).max())


def test_q_and_dq_differ_in_type_where_a_cast_stood_and_no_cast_is_between_them_and_a_layer():
    made = compute_half_int8(quantized(upsampler(), "int8"), SPEC, keep=("/conv2",))
    made_by = {o: n for n in made.graph.node for o in n.output}
    kinds = kinds_of(made)
    for name in ("/conv1", "/conv2", "/conv3", "/conv4"):
        assert [made_by[i].op_type for i in nodes_of(made)[name].input[:2]] == ["DequantizeLinear"] * 2
    first, kept = (nodes_of(made)[n].input for n in ("/conv1", "/conv2"))
    assert kinds[first[0]] == kinds[first[1]] == TensorProto.FLOAT16
    assert kinds[kept[0]] == kinds[kept[1]] == TensorProto.FLOAT
    q = made_by[made_by[first[0]].input[0]]
    scales = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert kinds[q.input[0]] == TensorProto.FLOAT  # x itself, of which float16 would be another rounding
    assert scales[q.input[1]] == np.float32(scales[made_by[first[0]].input[1]])
    names = [n.name for n in made.graph.node]
    assert len(set(names)) == len(names)


def test_scales_that_float16_cannot_hold_are_raised_and_weights_rounded_anew():
    tiny = np.float32(1e-9)
    scales = np.array([0.01, 3e-5, tiny], np.float32)
    halves = half_scales(scales)
    np.testing.assert_allclose(halves[:2].astype(np.float32), scales[:2], rtol=2**-9)
    assert halves[2] == LEAST_SCALE and half_scales(np.float32(0.0), 2.0**-24) > 0
    weight = weights(3, 4, 3, 3)
    weight *= (127 * scales / np.abs(weight).reshape(3, -1).max(1)).reshape(-1, 1, 1, 1)
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", pads=[1] * 4)],
        {"w": weight},
        {"x": [1, 4, 6, 6]},
        {"y": [1, 3, 6, 6]},
    )
    spec = replace(SPEC, results=(replace(SPEC.results[0], shape=(1, 3, 6, 6)),))
    made = compute_half_int8(quantized(model, "int8", spec=spec), spec)
    known = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    dq = next(n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in known)
    got = known[dq.input[0]] * known[dq.input[1]].astype(np.float64).reshape(-1, 1, 1, 1)
    steps = np.maximum(scales, LEAST_SCALE).reshape(-1, 1, 1, 1)
    # half a step, and for the first two compensation, which moves some weights to the next level
    assert (np.abs(got - weight) <= 2 * steps).all()
    assert np.abs(known[dq.input[0]][2]).max() == 0


def test_weights_stored_in_float16_are_read_as_they_are():
    model = upsampler()
    kept = next(t for t in model.graph.initializer if t.name == "w2")
    kept.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kept).astype(np.float16).astype(np.float32), "w2"))
    signed = quantized(model, "int8", replace(ALL, keep=("/conv2",)))
    stored = store_half(signed, SPEC, least=100)
    assert any(n.name.startswith("/half/") for n in stored.graph.node)
    made = compute_half_int8(stored, SPEC)
    assert not any(n.name.startswith("/half/") for n in made.graph.node)
    feeds = samples(1)[0]
    np.testing.assert_allclose(exact(made, feeds), run(stored, feeds), atol=0.03 * np.abs(run(stored, feeds)).max())


def operators(version: int, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    model = model_of(list(nodes), {}, {"x": [1, 4, 6, 6]}, {"y": None})
    model.opset_import[0].version = version
    return model


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("ReduceMax", ["x"], ["y"], name="/n", axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["x"], ["y"], name="/n"),
        helper.make_node("Split", ["x"], ["y", "z"], name="/n", axis=1),
        helper.make_node("Relu", ["x"], ["y"], name="/n"),
    ],
    ids=lambda n: f"{n.op_type}-{len(n.attribute)}",
)
@pytest.mark.parametrize("version", [13, 17])
def test_newer_opset_gives_the_same_numbers(node, version):
    model = onnx.shape_inference.infer_shapes(operators(version, node))
    made = raise_opset(model, 19)
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version == 19 and model.opset_import[0].version == version
    feeds = samples(1)[0]
    np.testing.assert_array_equal(run(made, feeds), run(model, feeds))


def test_operator_that_may_mean_something_else_is_refused_by_name():
    assert raise_opset(operators(13, helper.make_node("Softplus", ["x"], ["y"], name="/fine")), 19).ir_version == 9
    model = operators(15, helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], name="/roi"))
    with pytest.raises(SpecError, match="node /roi is of RoiAlign"):
        raise_opset(model, 19)


def test_export_for_a_jetson_has_it_for_quantized_stages_alone(make_checkpoint, tmp_path):
    jetson = load_profile("jetson-orin-nano-8gb")
    exported = export_checkpoint(make_checkpoint(), tmp_path / "bundle", jetson, tiny_options())
    with Bundle.open(tmp_path / "bundle") as bundle:
        verify_bundle(bundle)
        manifest = bundle.manifest
    made = manifest.variants["int8-fp16"]
    assert set(made) == {"text", "render"} == set(manifest.variants["int8"])
    assert {e.opset for e in made.values()} == {19}
    assert {e.opset for v, of in manifest.variants.items() if v != "int8-fp16" for e in of.values()} == {17}
    # float16 adds its own rounding to that of INT8, which is far larger
    quality = {v: manifest.quality[v]["render"]["psnr_db"]["mean"] for v in ("int8", "int8-fp16")}
    assert abs(quality["int8"] - quality["int8-fp16"]) < 3
    assert set(manifest.default.values()) <= {"fp32", "fp16"}
    with Pipeline.open(tmp_path / "bundle", engine="onnxruntime", variant="int8-fp16") as pipeline:
        assert len(list(pipeline.stream(caption="a person is walking", seconds=0.25))) == 4
    assert "int8-fp16" in exported.report["look_ahead"]["variants"]


@pytest.mark.parametrize("device, variants", [("jetson-orin-nano-8gb", ("fp32",)), ("cpu", ("fp32", "fp16"))])
def test_no_float16_or_no_tensorrt_no_such_variant(make_checkpoint, tmp_path, device, variants):
    options = replace(tiny_options(), variants=variants)
    exported = export_checkpoint(make_checkpoint(), tmp_path / "bundle", load_profile(device), options)
    assert "int8-fp16" not in exported.manifest.variants and "int8" in exported.manifest.variants
