from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.common.process import ROOT
from benchmarks.gpu import measure as gpu_measure
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import pytorch as gpu_torch
from benchmarks.gpu.ceilings import measure_gpu_ceilings
from benchmarks.gpu.material import gather, match_bundles
from benchmarks.gpu.measure import Budget, MeasureOptions, gpu_intervals, make_runner, measure, with_busy
from benchmarks.gpu.methods import GPU_METHODS, GRAPH, ONNX, gpu_method
from benchmarks.gpu.ort import NotInstalled
from benchmarks.gpu.player import Place
from benchmarks.gpu.pytorch import ModuleCall, ReadyMaskText
from t2v_edge.errors import UsageError
from t2v_edge.pipeline import Pipeline
from t2v_export.checkpoint.checkpoint import load_checkpoint

CPU = Place.of("cpu")
FEW = MeasureOptions(runs=20, batches=(4,), seconds=30.0)
EAGER = gpu_method("torch-eager-fp32")


@pytest.fixture(autouse=True)
def short_and_quiet(monkeypatch):
    """No stream longer than its frames, and no threads that wait for each other where other tests run beside."""
    monkeypatch.setattr(gpu_measure, "LEAST_S", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tests.t2v_export.conftest import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def material(checkpoint):
    return gather(checkpoint, None, captions=3, seed=0)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    from t2v_edge.device.profile import load_profile
    from t2v_export.exporter.export import ExportOptions, export_checkpoint

    target = tmp_path_factory.mktemp("out") / "bundle"
    export_checkpoint(checkpoint, target, load_profile("cpu"), ExportOptions(("fp32",), measure=False))
    return target


def arguments(checkpoint, output, *more):
    return [
        "--checkpoint",
        str(checkpoint),
        "-o",
        str(output),
        "--device",
        "cpu",
        "--runs",
        "20",
        "--captions",
        "2",
        "--batches",
        "4",
        *more,
    ]


def test_every_method_is_measured_or_says_why_not(checkpoint, tmp_path):
    output = tmp_path / "found.json"
    only = "torch-eager-fp32,torch-eager-fp16,torch-graph-fp16,ort-fp16"
    assert gpu_peers.main(arguments(checkpoint, output, "--only", only)) == 0
    found = json.loads(output.read_text())
    assert found["format"] == "t2v-benchmark-gpu-peers" and found["gpu"] is None and found["tf32"] is False
    by_name = {c["method"]: c for c in found["contenders"]}
    assert by_name["torch-graph-fp16"]["reason"] == "CUDA graphs need a GPU"
    assert by_name["ort-fp16"]["reason"] == "no --bundle of tiny was given"
    eager, half = by_name["torch-eager-fp32"], by_name["torch-eager-fp16"]
    assert set(eager["stages"]) == {"text", "motion", "render", "render_4"}
    assert all(
        0 < s["wall_ms"]["min"] <= s["wall_ms"]["median"] <= s["wall_ms"]["p95"] and s["wall_ms"]["runs"] == 20
        for s in eager["stages"].values()
    )
    assert set(eager["streams"]) == {"1", "4"} and all(s["fps"] > 0 for s in eager["streams"].values())
    assert eager["first_frame_ms"]["runs"] == 2
    # the same operations on the same processor; another batch may sum in another order, which rounds a level apart
    assert eager["errors"]["frames"]["1"] == {"psnr_db": 100.0, "psnr_min_db": 100.0, "max_levels": 0}
    assert eager["errors"]["frames"]["4"]["max_levels"] <= 1
    assert 0 < half["errors"]["motion_max"] < 0.01 and 35 < half["errors"]["frames"]["1"]["psnr_db"] < 100
    # as test_peers counts them: two doublings of a 4x4 stem
    macs = 14 * 12 * 16 + 9 * (12 * 12 * 64 + 12 * 8 * 256 + 8 * 3 * 256)
    assert found["models"]["tiny"]["render_gmac"] * 1e9 == macs


def test_a_method_that_fails_leaves_its_traceback_and_the_others(checkpoint, tmp_path, monkeypatch):
    real = gpu_measure.make_runner

    def broken(method, material, place):
        if method.precision == "fp16":
            raise RuntimeError("no kernel for this card")
        return real(method, material, place)

    monkeypatch.setattr(gpu_measure, "make_runner", broken)
    output = tmp_path / "found.json"
    assert gpu_peers.main(arguments(checkpoint, output, "--only", "torch-eager-fp16,torch-eager-fp32")) == 0
    by_name = {c["method"]: c for c in json.loads(output.read_text())["contenders"]}
    assert by_name["torch-eager-fp16"]["status"] == "failed"
    assert "no kernel for this card" in by_name["torch-eager-fp16"]["traceback"]
    assert by_name["torch-eager-fp32"]["status"] == "measured"


def test_a_run_that_is_resumed_keeps_what_was_measured(checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "found.json"
    assert gpu_peers.main(arguments(checkpoint, output, "--only", "torch-eager-fp16")) == 0
    before = json.loads(output.read_text())
    again = arguments(checkpoint, output, "--only", "torch-eager-fp16,torch-eager-fp32", "--resume")
    assert gpu_peers.main([*again, "--deadline", "0"]) == 0
    after = json.loads(output.read_text())
    assert after["contenders"][0] == before["contenders"][0] and after["ceilings"] == before["ceilings"]
    assert after["contenders"][1]["reason"].startswith("out of time")
    assert gpu_peers.main([*again, "--seed", "1"]) == 1  # of another seed
    assert json.loads(output.read_text()) == after


def test_a_stream_is_the_runtimes_own(material, bundle):
    with Pipeline.open(bundle, engine="onnxruntime", variant="fp32") as pipeline:
        stream = pipeline.stream("a person is running", seed=3)
        wanted = np.stack([next(stream).pixels for _ in range(8)]).astype(int)
    runner = make_runner(EAGER, material, CPU)
    for batch in (1, 4):
        with torch.inference_mode():
            player = runner.player(batch)
            player.start("a person is running", seed=3)
            made = np.concatenate([player.advance().copy() for _ in range(8 // batch)])
        assert np.abs(made - wanted).max() <= 1  # rounding of another order of sums


class Replayed:
    """A captured graph where there is none: a replay runs what was captured and writes to the same memory."""

    def __init__(self, once):
        self._once, self.outputs = once, tuple(tensor.clone() for tensor in once())

    def replay(self):
        for mine, made in zip(self.outputs, self._once()):
            mine.copy_(made)


@pytest.mark.parametrize("name", ["torch-graph-fp32", "torch-frame-graph-fp32"])
def test_captured_stages_show_the_stream_that_called_ones_do(material, monkeypatch, name):
    def recorded(once, place):
        graph = Replayed(once)
        return graph, graph.outputs

    monkeypatch.setattr(gpu_torch, "capture", recorded)
    clips = {}
    for method in (EAGER, gpu_method(name)):
        runner = make_runner(method, material, CPU)
        with torch.inference_mode():
            for batch in (1, 4):
                player = runner.player(batch)
                player.start("a person is dancing", seed=5)
                player.advance()
                player.start("a person is running", seed=3)  # nothing of the stream before is left
                shown = [player.advance().copy() for _ in range(4 // batch)]
                player.caption("a person is walking")
                clips[method.name, batch] = np.concatenate([*shown, *(player.advance() + 0 for _ in range(4 // batch))])
            assert gpu_measure.frame_errors(runner, material, 4)["max_levels"] <= 1
            assert max(gpu_measure.stage_errors(runner, material).values()) < 1e-5
    wanted = clips.pop((EAGER.name, 1)).astype(int)
    assert np.abs(wanted[4:] - wanted[:4]).max() > 1
    assert all(np.abs(clip - wanted).max() <= 1 for clip in clips.values())


def test_onnx_runtime_runs_a_bundle_with_bound_memory(checkpoint, bundle):
    pytest.importorskip("onnxruntime")
    assert match_bundles([checkpoint], [bundle]) == [bundle]
    found = measure(gpu_method("ort-fp32"), gather(checkpoint, bundle, 2, 0), CPU, FEW)
    assert found["notes"]["provider"] == "CPUExecutionProvider"
    assert found["errors"]["frames"]["1"]["max_levels"] <= 1 and found["errors"]["frames"]["4"]["max_levels"] <= 1
    assert found["errors"]["motion_max"] < 1e-5 and found["streams"]["4"]["fps"] > 0


def test_onnx_runtime_without_cuda_is_not_installed(material, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider"])
    with pytest.raises(NotInstalled, match="no CPUExecutionProvider"):
        make_runner(gpu_method("ort-fp32"), material, CPU)


def test_a_bundle_of_another_model_is_refused(bundle):
    with pytest.raises(UsageError, match="none of the checkpoints"):
        match_bundles([], [bundle])


def test_a_mask_made_on_the_gpu_means_what_the_encoders_own_does():
    text = load_checkpoint(ROOT / "checkpoints/tiny").text
    ids = torch.arange(5, 53)[None]
    for present in (1, 9, 48):
        mask = (torch.arange(48) < present).long()[None]
        with torch.inference_mode():
            assert torch.allclose(ReadyMaskText(text)(ids, mask), text(ids, mask), atol=1e-5)


def test_a_budget_that_is_over_leaves_out_look_ahead_batches(material):
    found = measure(EAGER, material, CPU, replace(FEW, seconds=0.0))
    assert found["streams"]["4"] == {"skipped": "the method's 0 s were over"}
    assert "render_4" not in found["stages"] and found["stages"]["render"]["wall_ms"]["runs"] == FEW.runs


def test_states_in_overwritten_memory_are_copied_out():
    """torch.compile's graphs write each step's outputs to the same memory; a stream must not read the next step's."""
    memory = torch.zeros(1, 2)

    def step(condition, state):
        memory.copy_(state + condition)
        return memory[:, :1], memory

    call = ModuleCall(step, [torch.ones(1, 2), torch.zeros(1, 2)], states=1, static=True)
    for wanted in (1.0, 2.0, 3.0):
        outputs = call.run()
        call.carry(outputs)
        assert call.inputs[1].tolist() == [[wanted, wanted]] and call.inputs[1].data_ptr() != memory.data_ptr()


class Ran:
    def __init__(self, start, end, name="kernel", kind=torch.autograd.DeviceType.CUDA):
        self.time_range, self.name, self.device_type = type("Range", (), {"start": start, "end": end})(), name, kind


def test_only_what_ran_on_the_gpu_counts_as_busy():
    events = [Ran(0, 5), Ran(0, 90, "## Call CompiledFxGraph x"), Ran(7, 9, kind=torch.autograd.DeviceType.CPU)]
    assert gpu_intervals(events) == [(0, 5)]


def test_the_idle_share_is_of_the_time_without_the_profiler():
    streams = {
        "1": {"fps": 100.0, "busy_ms": None, "idle_share": None},
        "4": {"fps": 400.0, "busy_ms": None},
        "8": {"skipped": "no time"},
    }
    found = with_busy(streams, {"1": 2.5, "4": None})
    assert found["1"]["idle_share"] == pytest.approx(0.75) and found["1"]["busy_ms"] == 2.5
    assert found["4"] == streams["4"] and found["8"] == streams["8"]


def test_a_budget_is_over_when_its_seconds_are():
    now = iter([10.0, 12.0, 13.0])
    budget = Budget(3.0, lambda: next(now))
    assert not budget.over and budget.over


def test_ceilings_of_a_cpu_are_its_products_and_copies():
    found = measure_gpu_ceilings(CPU, 0.02, (64,), 1 << 16)
    assert all(found["matrix"][p]["best"] > 0 for p in ("fp32", "fp16", "int8")) and found["copy_gb_s"] > 0
    assert found["graph_us"] is None


def test_a_rate_is_of_the_frames_of_a_batch():
    stages = {"render": {"gpu_ms": {"median": 1.0}}, "render_4": {"gpu_ms": {"median": 2.0}}, "text": {}}
    found = gpu_peers.render_rate(stages, 10**9, {"best": 8.0})
    assert found == {"1": {"tops": 2.0, "share": 0.25}, "4": {"tops": 4.0, "share": 0.5}}


def test_methods_of_the_issue_are_there_and_the_slowest_only_on_demand():
    names = [method.name for method in GPU_METHODS]
    assert len(set(names)) == len(names) == 16
    assert {m.precision for m in GPU_METHODS if m.runner in (GRAPH, ONNX)} == {"fp32", "fp16"}
    assert {m.name[:-5] for m in GPU_METHODS if m.captures} == {"torch-graph", "torch-frame-graph", "ort-graph"}
    assert [m.name for m in GPU_METHODS if m.asked] == ["torch-compile-max-fp16", "torch-compile-max-fp32"]


def test_wrong_use_exits_2(checkpoint, tmp_path, capsys):
    for wrong in (["--only", "torch-lazy"], ["--batches", "1"], ["--runs", "0"]):
        with pytest.raises(SystemExit) as stopped:
            gpu_peers.main(arguments(checkpoint, tmp_path / "x.json", *wrong))
        assert stopped.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_is_told_so(checkpoint, tmp_path, capsys):
    assert gpu_peers.main(["--checkpoint", str(checkpoint), "-o", str(tmp_path / "x.json")]) == 1
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.gpu
def test_graphs_and_eager_show_the_same_frames_on_a_gpu(material):
    place = Place.of("cuda")
    for name in ("torch-graph-fp32", "torch-frame-graph-fp32"):
        found = measure(gpu_method(name), material, place, FEW)
        assert found["errors"]["frames"]["1"]["max_levels"] <= 1 and found["errors"]["frames"]["4"]["max_levels"] <= 1
        clips = []
        for how in (EAGER, gpu_method(name)):
            runner = make_runner(how, material, place)
            with torch.inference_mode(), place.current():
                for batch in (1, 4):
                    player = runner.player(batch)
                    player.start("a person is running", seed=3)
                    clips.append(np.concatenate([player.advance().copy() for _ in range(8 // batch)]).astype(int))
        assert all(np.abs(clip - clips[0]).max() <= 1 for clip in clips)
