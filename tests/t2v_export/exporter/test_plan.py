"""The plan of an export: a list of passes, which the progress bar counts."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import replace

import onnx
import pytest
from tqdm import tqdm

from t2v_edge.device.profile import load_profile
from t2v_export.exporter import plan as plan_module
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.plan import PlannedPass, plan_export, run_plan
from t2v_export.exporter.results import PassResults, VariantGraph
from t2v_export.exporter.runner import PassContext, PassRunner
from t2v_export.recipe import parse_recipe
from t2v_export.store import PassStore

PASS = {"kind": "quantize", "text_samples": 12, "motion_samples": 16, "render_samples": 8, "steps": 8}


def recipe(**changes):
    return parse_recipe({"name": "tiny", "pass": [{**PASS, **changes}]}, "test")


def names(options: ExportOptions, device: str) -> list[str]:
    return [planned.name for planned in plan_export(options, load_profile(device))]


def test_plan_without_a_recipe_is_float_graphs_and_their_checks():
    assert names(ExportOptions(variants=("fp32",), measure=False), "cpu") == [
        "float32 graphs",
        "torch",
        "float32 verified",
        "targets",
        "look-ahead",
        "default",
    ]


def test_plan_follows_options_and_device():
    on_cpu = names(ExportOptions(recipe=recipe(smooth=0.5)), "cpu")
    on_jetson = names(ExportOptions(recipe=recipe()), "jetson-orin-nano-8gb")
    assert "upsampling" in on_cpu and "upsampling" not in on_jetson
    assert "8-bit weights of motion" in on_cpu and "8-bit weights of motion" not in on_jetson
    assert "smoothing text" in on_cpu and "smoothing text" not in on_jetson
    assert "INT8 and float16 render" in on_jetson and "INT8 and float16 motion" not in on_jetson
    first = ["calibration", "ranges text", "sensitivity text", "INT8 text", "INT8 text verified", "times text"]
    assert [name for name in on_jetson if name in first] == first
    assert len(set(on_cpu)) == len(on_cpu)


def test_each_pass_gets_its_own_name_and_stage_and_the_results_before_it():
    seen = []

    def record(context, results):
        seen.append((context.name, context.stage, results.one_at_a_time))
        return replace(results, one_at_a_time={**results.one_at_a_time, context.name: context.stage})

    runner = PassRunner(PassStore(None), False)
    context = PassContext(runner, None, None, load_profile("cpu"), ExportOptions())
    results = run_plan([PlannedPass("one", record), PlannedPass("two text", record, "text")], context)
    assert seen == [("one", "", {}), ("two text", "text", {"one": ""})]
    assert results.one_at_a_time == {"one": "", "two text": "text"}


def test_results_are_frozen_and_adding_a_graph_leaves_them_as_they_were():
    before = PassResults(graphs={"fp32": {"text": VariantGraph(b"one")}})
    after = before.with_graph("fp32", "text", VariantGraph(b"two")).with_refusal("int8", "text", "why")
    assert before.graphs["fp32"]["text"].data == b"one" and not before.refused
    assert after.graphs["fp32"]["text"].data == b"two" and after.refused == {"int8": {"text": "why"}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.graphs = {}


def test_bar_ends_full_though_a_stage_has_no_layers_to_quantize(make_checkpoint, cpu, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, plan, **options):
            super().__init__(plan, **{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    folder = make_checkpoint()
    export_checkpoint(folder, tmp_path / "float", cpu, ExportOptions(variants=("fp32",), measure=False))
    every = [node.name for node in onnx.load(tmp_path / "float" / "fp32" / "text.onnx").graph.node if node.name]
    monkeypatch.setattr(plan_module, "tqdm", Bar)
    options = ExportOptions(variants=("fp32",), measure=False, recipe=recipe(stages=["text"], keep=every))
    exported = export_checkpoint(folder, tmp_path / "bundle", cpu, options)
    assert "int8" not in exported.manifest.variants and exported.manifest.provenance["calibration_sha256"]
    assert [bar.n for bar in bars] == [bar.total for bar in bars] == [len(plan_export(options, cpu))]
