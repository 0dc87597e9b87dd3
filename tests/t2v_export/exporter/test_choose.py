from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import verify_bundle
from t2v_edge.device.profile import load_profile
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import STAGES
from t2v_export.commands.export import summary, table
from t2v_export.exporter import export
from t2v_export.exporter.choose import choose, shipped
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.passes import latency as latency_passes
from t2v_export.verify import latency
from t2v_export.verify.latency import GraphLatency, measure_latencies

BOTH = {"fp32": STAGES, "fp16": STAGES}


def times(**milliseconds):
    """Latencies of all stages by variant: a number for ONNX Runtime, or (ONNX Runtime, OpenVINO)."""
    names = ("onnxruntime", "openvino")
    return {
        v.replace("_", "-"): {s: {e: GraphLatency(t, t, 10) for e, t in zip(names, ms)} for s in STAGES}
        for v, ms in ((v, ms if isinstance(ms, tuple) else (ms,)) for v, ms in milliseconds.items())
    }


def chosen(cpu, **milliseconds) -> str:
    measured = times(**milliseconds)
    (variant,) = {v for v, _ in choose(cpu, dict.fromkeys(measured, STAGES), measured).default.values()}
    return variant


def test_slower_precision_is_never_the_default(cpu):
    assert chosen(cpu, fp32=1.0, fp16=1.2) == "fp32"
    assert chosen(cpu, fp32=1.0, fp16=0.99) == "fp32"
    assert chosen(cpu, fp32=1.0, fp16=0.5) == "fp16"
    assert {v for v, _ in choose(cpu, BOTH, {}).default.values()} == {"fp32"}
    jetson = choose(load_profile("jetson-orin-nano-8gb"), BOTH, times(fp32=1.0, fp16=2.0))
    assert [jetson.default[s][0] for s in STAGES] == ["fp16", "fp32", "fp16"] and not jetson.lost


def test_int8_is_the_default_only_where_it_beat_every_more_exact_precision(cpu):
    assert chosen(cpu, fp32=10, fp16=12, int8_u8=5) == "int8-u8"
    assert chosen(cpu, fp32=10, fp16=5, int8_u8=5) == "fp16"
    assert chosen(cpu, fp32=10, fp16=12, int8_u8=11) == "fp32"
    assert chosen(cpu, fp32=10, int8=1, int8_u8=20) == "fp32"  # signed INT8 is not among a CPU's precisions


def test_each_variant_counts_by_its_fastest_engine(cpu):
    assert chosen(cpu, fp32=(10, 4), int8_u8=(5, 6)) == "fp32"
    assert chosen(cpu, fp32=(10, 4), int8_u8=(5, 2)) == "int8-u8"
    why = choose(cpu, {"fp32": STAGES, "int8-u8": STAGES}, times(fp32=(10, 4), int8_u8=(5, 6))).default["text"][1]
    assert why == "measured here: fp32 4 ms (openvino), int8-u8 5 ms (onnxruntime)"


def test_what_one_engine_runs_slower_is_not_the_default_whatever_another_gains(cpu):
    made = {"fp32": STAGES, "fp16": STAGES, "int8-u8": STAGES}
    choice = choose(cpu, made, times(fp32=(10, 8), fp16=(10, 7), int8_u8=(11, 4)))
    # the text stage runs once a caption, and no frame waits for it
    assert {s: v for s, (v, _) in choice.default.items()} == {"text": "int8-u8", "motion": "fp16", "render": "fp16"}
    why = "slower in onnxruntime: 11 ms, a more exact one takes 10 ms"
    assert choice.lost == {"int8-u8": {"motion": why, "render": why}}
    assert chosen(cpu, fp32=(10, 8), int8_u8=(10.3, 4)) == "int8-u8"  # within what medians differ by themselves


def test_what_is_no_gain_is_not_shipped_and_says_why(cpu):
    made = {"fp32": STAGES, "fp16": STAGES, "int8": ("render",), "int8-u8": ("render",)}
    measured = times(fp32=(10, 9), fp16=(9, 9), int8=(1, 1), int8_u8=(5, 4))
    choice = choose(cpu, made, {v: {s: measured[v][s] for s in stages} for v, stages in made.items()})
    assert choice.default["render"][0] == "int8-u8" and choice.default["text"][0] == "fp32"
    assert "9 ms at best (onnxruntime) is no gain: a more exact one takes 9 ms" in choice.lost["fp16"]["motion"]
    assert choice.lost["int8"] == {"render": "not among cpu's precisions"}
    assert shipped(made, choice, "faster") == {"fp32": STAGES, "int8-u8": ("render",)}
    assert shipped(made, choice, "chosen") == {"fp32": ("text", "motion"), "int8-u8": ("render",)}
    assert shipped(made, choice, "all") == made


def test_export_drops_what_lost_and_a_bundle_of_the_chosen_alone_plays(make_checkpoint, cpu, tmp_path, monkeypatch):
    fast = times(fp32=(2, 2), fp16=(2, 1))
    slow = times(fp32=(2, 2), fp16=(3, 3))
    monkeypatch.setattr(
        latency_passes, "measure_latencies",
        lambda graphs, spec, _: {
            v: (fast if spec.stage == "render" else slow).get(v, fast["fp32"])[spec.stage] for v in graphs
        },
    )  # fmt: skip
    exported = export_checkpoint(make_checkpoint(), tmp_path / "faster", cpu)
    with Bundle.open(tmp_path / "faster") as bundle:
        verify_bundle(bundle)
        assert {v: set(s) for v, s in bundle.manifest.variants.items()} == {"fp32": {*STAGES}, "fp16": {"render"}}
        assert set(bundle.manifest.quality["fp16"]) == {"render"}
        report = json.loads(bundle.read("report.json"))
    assert set(report["dropped"]) == {"fp16"} and set(report["dropped"]["fp16"]) == {"text", "motion"}
    assert report["bytes"]["fp16"]["text"] > 0 and report["differences"]["fp16"]["text"]["max_rel"] > 0
    assert "no gain" in summary(exported)["variants"]["fp16"]["text"]["dropped"] and "dropped" in table(exported)
    export_checkpoint(make_checkpoint(), tmp_path / "chosen", cpu, ExportOptions(ship="chosen"))
    with Pipeline.open(tmp_path / "chosen") as pipeline:
        assert {v: set(s) for v, s in pipeline.manifest.variants.items()} == {
            "fp32": {"text", "motion"},
            "fp16": {"render"},
        }
        assert len(list(pipeline.stream(caption="a person is walking", seconds=0.25))) == 4
    with pytest.raises(UsageError, match="ship is 'some'; choose from faster"):
        ExportOptions(ship="some")


def test_engine_that_disagrees_or_cannot_load_is_not_timed(make_checkpoint, cpu, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    real = latency.open_engine
    export_checkpoint(make_checkpoint(), tmp_path / "b", cpu, ExportOptions(measure=False))
    checkpoint = export.load_checkpoint(tmp_path / "checkpoint")
    with Bundle.open(tmp_path / "b") as bundle:
        graph = onnx.load_from_string(bundle.graph("fp32", "text"))
    ones = np.ones((1, 12), np.int64)
    monkeypatch.setattr(latency, "stage_feeds", lambda *_: {"input_ids": ones, "attention_mask": ones})
    spec = checkpoint.specs["text"]
    assert set(measure_latencies({"fp32": graph}, spec, None)["fp32"]) == {"onnxruntime", "openvino"}

    class Wrong:
        name = "openvino"

        def __init__(self, *arguments):
            self.real = real(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.real.close()

        def run(self, feeds):
            return {name: -value for name, value in self.real.run(feeds).items()}

    monkeypatch.setattr(latency, "open_engine", lambda name, *a: (Wrong if name == "openvino" else real)(name, *a))
    assert set(measure_latencies({"fp32": graph}, spec, None)["fp32"]) == {"onnxruntime"}

    def broken(name, *_):
        raise EngineError(f"{name} is broken")

    monkeypatch.setattr(latency, "open_engine", broken)
    with pytest.raises(EngineError, match="onnxruntime is broken"):
        measure_latencies({"fp32": graph}, spec, None)


def test_smallest_bundle_takes_a_much_smaller_graph_that_is_no_slower(cpu):
    graphs = {"fp32": ("motion",), "fp16": ("motion",)}

    def chosen(fp16_ms: float, fp16_bytes: int) -> str:
        times = {
            v: {"motion": {"onnxruntime": GraphLatency(ms, ms, 20)}} for v, ms in (("fp32", 1.0), ("fp16", fp16_ms))
        }
        sizes = {"fp32": {"motion": 100}, "fp16": {"motion": fp16_bytes}}
        return choose(cpu, graphs, times, sizes).default["motion"][0]

    # a graph whose size does not count has to be faster
    times = {v: {"motion": {"onnxruntime": GraphLatency(1.0, 1.0, 20)}} for v in graphs}
    assert choose(cpu, graphs, times, {"fp32": {"motion": 100}, "fp16": {}}).default["motion"][0] == "fp32"
    assert (chosen(1.03, 50), chosen(1.1, 50), chosen(1.03, 80), chosen(0.9, 80)) == ("fp16", "fp32", "fp32", "fp16")
