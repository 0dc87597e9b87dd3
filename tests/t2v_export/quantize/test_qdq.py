from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_calibration.calibration_set import CalibrationError
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.draws import Draws
from t2v_edge.bundle.golden import verify_bundle
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.checkpoint.config import StageConfig
from t2v_export.commands.export import summary, table
from t2v_export.errors import AccuracyError
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.graph.lint import lint, target_of
from t2v_export.quantize import stage as int8
from t2v_export.quantize.plan import make_plan
from t2v_export.quantize.qdq import INT8_VARIANTS
from t2v_export.quantize.stage import measure_int8
from t2v_export.recipe import Quantize, parse_recipe
from t2v_export.verify.difference import StageDifference
from tests.t2v_export.quantize_samples import (
    ALL,
    SPEC,
    constants_of,
    model_of,
    nodes_of,
    quantized,
    run,
    samples,
    upsampler,
    weights,
)


@pytest.mark.parametrize("variant", INT8_VARIANTS)
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_quantized_graph_is_near_the_float_one_and_lints_clean(variant, method):
    model = upsampler()
    made = quantized(model, variant, replace(ALL, method=method))
    assert lint(made, target_of(variant, 17)) == ()
    for feeds in samples(4):
        wanted = run(model, feeds)
        # entropy reads the noise of so small a set as shape and cuts more off than it would from a whole one
        allowed = 0.06 if method == "entropy" else 0.03
        assert 0 < np.abs(run(made, feeds) - wanted).mean() < allowed * np.abs(wanted).max()


def test_signed_variant_has_no_zero_point_but_zero_and_quantizes_only_what_layers_read():
    made = quantized(upsampler(), "int8")
    known = constants_of(made)
    steps = [n for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert steps and all(not known[n.input[2]].any() and known[n.input[2]].dtype == np.int8 for n in steps)
    quantizers = {n.input[0] for n in steps if n.op_type == "QuantizeLinear"}
    assert quantizers == {"x", "r1", "both", "big", "mean", "r2"}
    assert made.graph.node[-1].input[0] == "r2.dq"


def test_unsigned_variant_starts_at_zero_after_relu_and_keeps_convolutions_in_8_bits():
    made = quantized(upsampler(), "int8-u8")
    known = constants_of(made)
    zero = {n.input[0]: known[n.input[2]] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert zero["r2"] == 0 and zero["x"] > 0 and zero["r2"].dtype == np.uint8
    assert {"c2", "bias", "y"} <= set(zero) and "c1" not in zero  # relu1's output is quantized, conv1's need not be
    assert known["conv1.bias.int32"].dtype == np.int32
    assert run(made, samples(1)[0]).shape == (1, 3, 12, 12)


def test_scales_are_those_of_numpy_and_shared_across_concat_and_resize():
    fed = samples()
    made = quantized(upsampler(), "int8", fed=fed)
    known = constants_of(made)
    scale = {n.input[0]: float(known[n.input[1]]) for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert scale["both"] == scale["big"] == scale["r1"] == scale["x"]
    model = upsampler()
    model.graph.output.extend([helper.make_empty_tensor_value_info("both")])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = max(np.abs(session.run(["both"], feeds)[0]).max() for feeds in fed)
    assert scale["both"] == pytest.approx(largest / 127, rel=1e-6)


LAYERS = {
    "Conv": ((6, 4, 3, 3), 0, {}),
    "ConvTranspose": ((4, 6, 3, 3), 1, {"pads": [1] * 4}),
    "Gemm": ((4, 6), 1, {}),
    "Gemm transposed": ((6, 4), 0, {"transB": 1}),
    "MatMul": ((4, 6), 1, {}),
}


def layer(kind: str, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> onnx.ModelProto:
    shape, _, attributes = LAYERS[kind]
    operator, image = kind.split()[0], "Conv" in kind
    given = {"w": weights(*shape) if weight is None else weight}
    if bias is not None:
        given["b"] = bias
    size = [1, 4, 6, 6] if image else [1, 4]
    node = helper.make_node(operator, ["x", *given], ["y"], name="/layer", **attributes)
    made = {"Conv": [1, 6, 4, 4], "ConvTranspose": [1, 6, 6, 6]}.get(kind, [1, 6])
    return model_of([node], given, {"x": size}, {"y": made})


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_scales_run_along_the_outputs(kind):
    shape, axis, _ = LAYERS[kind]
    model = layer(kind)
    fed = samples(shape=(1, 4, 6, 6) if "Conv" in kind else (1, 4))
    made = quantized(model, "int8", replace(ALL, bias_correction=False), fed)
    dequantize = nodes_of(made)["/dq/layer.weight"]
    known, weight = constants_of(made), weights(*shape)
    assert dequantize.attribute[0].i == axis
    wanted = np.abs(weight).max(tuple(i for i in range(weight.ndim) if i != axis)) / 127
    np.testing.assert_allclose(known["layer.weight.scale"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(known["layer.weight.int8"]).max(tuple({*range(weight.ndim)} - {axis})), 127)
    error = np.abs(run(made, fed[0]) - run(model, fed[0])).max()
    assert 0 < error < 0.05 * np.abs(run(model, fed[0])).max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_largest_weights_and_inputs_do_not_clip_on_any_processor(kind, engine):
    """All products are as large as they get: sums of two of them in 16 bits, as AVX2 makes them, must hold."""
    pytest.importorskip(engine)
    shape = LAYERS[kind][0]
    model = layer(kind, np.full(shape, 0.25, np.float32))
    size = (1, 4, 6, 6) if kind == "Conv" else (1, 4)
    fed = [{"x": np.full(size, value, np.float32)} for value in (0.0, 0.9, 1.0)]
    made = quantized(model, "int8-u8", ALL, fed)
    assert np.abs(constants_of(made)["layer.weight.int8"]).max() == 64
    outputs = tuple(d.dim_value for d in made.graph.output[0].type.tensor_type.shape.dim)
    spec = StageSpec("render", (TensorSpec("x", size),), (TensorSpec("y", outputs),))
    with open_engine(engine, made.SerializeToString(), spec, EngineOptions(threads=1)) as opened:
        np.testing.assert_allclose(opened.run(fed[2])["y"], run(model, fed[2]), rtol=0.01)


def test_weights_have_the_bits_that_the_recipe_says_and_tensorrt_all_8():
    for variant, bits, largest in (("int8-u8", 8, 127), ("int8-u8", 7, 64), ("int8", 7, 127)):
        known = constants_of(quantized(upsampler(), variant, replace(ALL, weight_bits=bits)))
        made = [value for name, value in known.items() if name.endswith("weight.int8")]
        assert len(made) == 4 and all(np.abs(value).max() == largest for value in made)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "Gemm transposed"])
@pytest.mark.parametrize("variant", INT8_VARIANTS)
def test_bias_correction_takes_back_the_mean_error_of_a_skewed_layer(kind, variant):
    """All weights but one round up by 0.4 steps, and inputs are around 5: outputs move by a constant."""
    shape, axis, _ = LAYERS[kind]
    weight = np.full(shape, 10.4 / 127, np.float32)
    np.moveaxis(weight, axis, 0).reshape(shape[axis], -1)[:] = 10.4 / 127
    flat = np.moveaxis(weight, axis, 0)
    flat[(slice(None), *[0] * (weight.ndim - 1))] = 1.0
    model = layer(kind, weight, np.zeros(6, np.float32))
    fed = samples(64, (1, 4, 6, 6) if "Conv" in kind else (1, 4), mean=5.0)

    def shift(options: Quantize) -> float:
        made = quantized(model, variant, options, fed)
        return abs(float(np.mean([(run(made, f) - run(model, f)).mean() for f in fed])))

    assert shift(ALL) < 0.35 * shift(replace(ALL, bias_correction=False))


def test_bias_of_a_matmul_is_corrected_in_the_sum_behind_it():
    weight = np.full((4, 6), 10.4 / 127, np.float32)
    weight[0] = 1
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="/layer"),
        helper.make_node("Add", ["b", "m"], ["y"], name="/add"),
        helper.make_node("Relu", ["b"], ["other"], name="/relu"),  # who else reads the bias must not notice
    ]
    outputs = {"y": [1, 6], "other": [6]}
    model = model_of(nodes, {"w": weight, "b": np.ones(6, np.float32)}, {"x": [1, 4]}, outputs)
    fed = samples(64, (1, 4), mean=5.0)
    made = quantized(model, "int8", ALL, fed)
    known = constants_of(made)
    error = known["layer.weight.int8"] * known["layer.weight.scale"] - weight
    mean = np.mean([f["x"][0] for f in fed], axis=0)
    np.testing.assert_allclose(known["add.corrected"], 1 - mean @ error, rtol=1e-5)
    np.testing.assert_array_equal(known["b"], 1)


def test_coordinates_and_pixels_stay_in_float_where_the_recipe_says_so():
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["a"], name="/first"),
        helper.make_node("Relu", ["a"], ["r"], name="/relu"),
        helper.make_node("Gemm", ["r", "w2"], ["b"], name="/middle"),
        helper.make_node("Gemm", ["b", "w3"], ["y"], name="/last"),
    ]
    given = {name: weights(4, 4, seed=i) for i, name in enumerate(("w1", "w2", "w3"))}
    model = model_of(nodes, given, {"x": [1, 4]}, {"y": [1, 4]})
    spec = StageSpec("render", (TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))
    plan = make_plan(model, spec, Quantize())
    assert (plan.layers, plan.kept) == (("/middle",), ("/first", "/last"))
    assert make_plan(model, spec, replace(ALL, keep=("/last",))).kept == ("/last",)
    assert make_plan(model, spec, ALL).kept == ()


def test_layers_of_a_module_named_layout_have_grids_of_their_own():
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["a"], name="/layout/layout.0/Gemm"),
        helper.make_node("Gemm", ["a", "w2"], ["y"], name="/layout/layout.1/Gemm"),
    ]
    given = {"w1": weights(4, 4), "w2": weights(4, 4, seed=1)}
    model = model_of(nodes, given, {"x": [1, 4]}, {"y": [1, 4]})
    spec = StageSpec("render", (TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))
    assert make_plan(model, spec, ALL).groups == (("x",), ("a",))


def test_lookup_tables_are_stored_in_int8_and_looked_up_alike():
    table = weights(600, 128)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embed"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="/layer"),
    ]
    model = model_of(nodes, {"table": table, "w": weights(128, 4)}, {"ids": [1, 5]}, {"y": [1, 5, 4]})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    fed = [{"ids": np.random.default_rng(i).integers(0, 600, (1, 5))} for i in range(16)]
    made = quantized(model, "int8-u8", ALL, fed)
    assert made.ByteSize() < model.ByteSize() / 3.5
    assert np.abs(run(made, fed[0]) - run(model, fed[0])).max() < 0.03 * np.abs(run(model, fed[0])).max()


def test_same_input_gives_the_same_bytes_and_the_input_is_left_alone():
    model = upsampler()
    before = model.SerializeToString()
    first, again = (quantized(model, "int8-u8").SerializeToString(deterministic=True) for _ in range(2))
    assert first == again and model.SerializeToString() == before


def test_no_samples_and_nan_are_typed_errors():
    with pytest.raises(CalibrationError, match="no samples"):
        quantized(upsampler(), "int8", fed=[])
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        quantized(upsampler(), "int8", fed=[{"x": np.full((1, 4, 6, 6), np.nan, np.float32)}])
    spoilt = upsampler()
    spoilt.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((5, 4, 3, 3), np.inf, np.float32), "w1"))
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        quantized(spoilt, "int8")


SMALL_RECIPE = {"kind": "quantize", "text_samples": 12, "motion_samples": 16, "render_samples": 8, "steps": 8}


def tiny_options(**changes) -> ExportOptions:
    recipe = parse_recipe({"name": "tiny", "pass": [{**SMALL_RECIPE, **changes}]}, "test")
    return ExportOptions(recipe=recipe, measure=False)


def test_export_with_a_recipe_adds_int8_variants_and_says_what_they_lose(make_checkpoint, cpu, tmp_path):
    exported = export_checkpoint(make_checkpoint(), tmp_path / "one", cpu, tiny_options())
    with Bundle.open(tmp_path / "one") as bundle:
        verify_bundle(bundle)
        manifest = bundle.manifest
    assert list(manifest.variants) == ["fp32", "fp16", "int8", "int8-u8"]
    for variant in INT8_VARIANTS:
        assert set(manifest.variants[variant]) <= {"text", "render"} and "render" in manifest.variants[variant]
        found = summary(exported)["variants"][variant]["render"]
        assert found["psnr_db"]["min"] > 25 and found["psnr_db"]["frames"] == 48 and found["max_rel"] > 0
    assert manifest.provenance["recipe"] == "tiny" and len(manifest.provenance["calibration_sha256"]) == 64
    assert set(manifest.default.values()) == {"fp32"}  # not measured
    assert "dB" in table(exported)
    with Pipeline.open(tmp_path / "one", engine="onnxruntime", variant="int8-u8") as pipeline:
        assert pipeline.variants["motion"] == "fp32" and pipeline.variants["render"] == "int8-u8"
        assert len(list(pipeline.stream(caption="a person is walking", seconds=0.25))) == 4
    again = export_checkpoint(make_checkpoint(), tmp_path / "two", cpu, tiny_options())
    assert again.manifest.to_bytes() == exported.manifest.to_bytes()


@pytest.mark.parametrize("upsample", ["transpose", "pixel_shuffle"])
def test_every_kind_of_renderer_and_an_lstm_go_through(make_checkpoint, cpu, tmp_path, upsample):
    folder = make_checkpoint(
        motion=StageConfig("recurrent", {"cell": "lstm", "hidden": 8}),
        render=StageConfig("upsample", {"channels": [12, 8], "upsample": upsample}),
    )
    exported = export_checkpoint(folder, tmp_path / "bundle", cpu, tiny_options())
    assert exported.manifest.quality["int8"]["render"]["psnr_db"]["min"] > 25


def test_state_error_of_a_quantized_motion_stage_stays_bounded(make_checkpoint, cpu, tmp_path):
    options = tiny_options(stages=["motion"], keep_first=False, keep_last=False, motion_samples=256, steps=64)
    exported = export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, options)
    with Bundle.open(tmp_path / "bundle") as bundle:
        specs = bundle.manifest.stages["motion"]
        graphs = {v: bundle.graph(v, "motion") for v in ("fp32", "int8-u8")}
    states = {}
    for variant, graph in graphs.items():
        draws = Draws(specs, exported.manifest.stages["render"], 3)
        state, states[variant] = draws.states, []
        with open_engine("onnxruntime", graph, specs, EngineOptions()) as engine:
            for _ in range(300):
                made = engine.run({"condition": np.full((1, 6), 0.2, np.float32), **draws.step(), **state})
                state = {"state.h0": made["next.h0"]}
                states[variant].append(made["next.h0"])
    error = np.abs(np.concatenate(states["fp32"]) - np.concatenate(states["int8-u8"])).max(1)
    assert 0 < error.max() < 0.2 and error[200:].mean() < 2 * error[20:120].mean()


def test_graph_that_gives_infinity_is_refused(monkeypatch):
    monkeypatch.setattr(int8, "compare_stage", lambda *_: StageDifference(np.inf, np.inf))
    with pytest.raises(AccuracyError, match="int8 render: gives NaN or infinity; leave"):
        measure_int8(upsampler(), SPEC, (), "int8")
