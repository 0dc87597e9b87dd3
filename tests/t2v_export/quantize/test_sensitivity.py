from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.errors import UsageError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.quantize.observe import observe
from t2v_export.quantize.plan import make_plan, observed_tensors
from t2v_export.quantize.sensitivity import SensitivityMetric, layer_macs, measure_sensitivity
from t2v_export.quantize.stage import quantize_stage
from t2v_export.recipe import Quantize, load_recipe, parse_recipe

ALL = Quantize(method="minmax", keep_first=False, keep_last=False)
SPEC = StageSpec("text", (TensorSpec("x", (1, 16)),), (TensorSpec("condition", (1, 4)),))


def chain() -> onnx.ModelProto:
    """Three products; the input of the second has one value a thousand times the others, which INT8 cannot bear."""
    random = np.random.default_rng(0)
    given = {
        "w1": random.standard_normal((16, 24)) / 4,
        "spread": np.where(np.arange(24) == 5, 1000.0, 1.0),
        "w2": random.standard_normal((24, 8)) / 5 / np.where(np.arange(24) == 5, 1000.0, 1.0)[:, None],
        "w3": random.standard_normal((8, 4)) / 3,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="/first"),
        helper.make_node("Mul", ["a", "spread"], ["b"], name="/spread"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="/second"),
        helper.make_node("MatMul", ["c", "w3"], ["condition"], name="/third"),
    ]
    made = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("condition", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(seed: int, count: int = 32) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, 16)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def watched():
    model = chain()
    plan = make_plan(model, SPEC, ALL)
    return (
        model,
        plan,
        observe(model, samples(0), *observed_tensors(model, plan)),
        SensitivityMetric(model, SPEC, samples(1, 8)),
    )


def test_layer_that_suffers_most_comes_first(watched):
    model, plan, seen, judge = watched
    found = measure_sensitivity(model, plan, seen, ALL, judge)
    assert [s.layer for s in found][0] == "/second" and {s.layer for s in found} == set(plan.layers)
    assert found[0].value > 10 * found[1].value and all(s.value > 0 for s in found)
    assert {s.layer: s.macs for s in found} == {"/first": 16 * 24, "/second": 24 * 8, "/third": 8 * 4}
    assert found[0].to_json(judge.key) == {"layer": "/second", "error": found[0].value, "macs": 192}


def test_as_few_layers_stay_in_float32_as_keep_the_bound(watched):
    model, plan, seen, judge = watched
    ranked = [s.layer for s in measure_sensitivity(model, plan, seen, ALL, judge)]

    def made(bound: float):
        return quantize_stage(model, plan, seen, replace(ALL, max_error=bound), judge, ranked, 17)

    assert made(0.0).float32_layers == {"int8": (), "int8-u8": ()}
    kept = made(0.05)
    assert kept.float32_layers == {"int8": ("/second",), "int8-u8": ("/second",)}
    assert all(judge(graph) <= 0.05 for graph in kept.graphs.values())
    assert all(judge(graph) > 0.05 for graph in made(0.0).graphs.values())
    none = made(1e-6)
    assert not none.graphs and none.refused["int8"] == "keeps max_error 1e-06 with no layer in INT8"


def test_macs_are_those_of_the_layers_sums():
    def macs(kind: str, weight: tuple[int, ...], size: list[int], output: list[int], **attributes) -> int:
        node = helper.make_node(kind, ["x", "w"], ["y"], name="/layer", **attributes)
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            [numpy_helper.from_array(np.zeros(weight, np.float32), "w")],
        )
        return layer_macs(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))["/layer"]

    assert macs("Conv", (6, 4, 3, 3), [1, 4, 8, 8], [1, 6, 8, 8], pads=[1] * 4) == 6 * 4 * 9 * 64
    assert macs("Conv", (6, 2, 1, 1), [1, 4, 8, 8], [1, 6, 8, 8], group=2) == 6 * 2 * 64
    assert macs("ConvTranspose", (4, 6, 2, 2), [1, 4, 8, 8], [1, 6, 16, 16], strides=[2, 2]) == 4 * 6 * 4 * 64
    assert macs("Gemm", (6, 4), [3, 4], [3, 6], transB=1) == 3 * 4 * 6
    assert macs("MatMul", (4, 6), [1, 5, 4], [1, 5, 6]) == 5 * 4 * 6


SMALL = {"kind": "quantize", "text_samples": 12, "motion_samples": 16, "render_samples": 8, "steps": 8}


def test_export_reports_sensitivity_and_a_bound_on_frames_is_kept_or_int8_refused(make_checkpoint, cpu, tmp_path):
    def export(name: str, **changes):
        recipe = parse_recipe({"name": "tiny", "pass": [{**SMALL, **changes}]}, "test")
        return export_checkpoint(make_checkpoint(), tmp_path / name, cpu, ExportOptions(recipe=recipe, measure=False))

    free = export("free", keep_first=False, keep_last=False)
    with Bundle.open(tmp_path / "free") as bundle:
        report = json.loads(bundle.read("report.json"))
    values = [entry["psnr_db"] for entry in report["sensitivity"]["render"]]
    assert len(values) >= 3 and values == sorted(values) and report["sensitivity"] == free.report["sensitivity"]
    bound = free.differences["int8-u8"]["render"].psnr_db["mean"] + 3
    kept = export("kept", keep_first=False, keep_last=False, min_psnr=bound)
    layers = kept.manifest.variants["int8-u8"]["render"].float32_layers
    ranked = [entry["layer"] for entry in kept.report["sensitivity"]["render"]]
    assert 0 < len(layers) < len(ranked) and set(layers) == set(ranked[: len(layers)])
    assert kept.differences["int8-u8"]["render"].psnr_db["mean"] > bound - 2  # other frames than those it is kept on
    none = export("none", min_psnr=100.0, stages=["render"], sensitivity=False)
    assert set(none.manifest.variants) == {"fp32", "fp16"}
    assert none.report["dropped"]["int8"]["render"] == "keeps min_psnr 100 dB with no layer in INT8"


def test_bound_of_the_command_line_replaces_the_recipes():
    assert load_recipe("fast").bounded(41.5).quantize == Quantize(smooth=0.5, min_psnr=41.5)
    with pytest.raises(UsageError, match="min-psnr is 120"):
        load_recipe("fast").bounded(120)
    with pytest.raises(UsageError, match="makes no INT8 graphs"):
        parse_recipe({"name": "prune", "pass": [{"kind": "prune"}]}, "test").bounded(40)
