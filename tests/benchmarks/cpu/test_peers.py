from __future__ import annotations

import json
import os
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.common.methods import METHODS, OURS, method
from benchmarks.common.process import ProcessError, environment, measure, memory
from benchmarks.cpu import ceiling, material, peers, worker
from benchmarks.cpu.engines import open_pipeline
from benchmarks.cpu.material import failures, prepare

CEILINGS = {p: {"best": 100.0, "by": "test", "all": {"test": 100.0}} for p in ("fp32", "int8")}
FIGURES = {
    "import_ms",
    "cold_start_ms",
    "import_mib",
    "peak_mib",
    "first_frame_ms",
    "base_fps",
    "shown_fps",
    "text_ms",
    "motion_ms",
    "render_ms",
}


def broken(plain, target, samples):
    raise RuntimeError("this tool is broken\nand says much more")


@pytest.fixture
def quantizers(monkeypatch):
    """ONNX Runtime's tool, and one that fails: the others take seconds of import each."""
    monkeypatch.setattr(material, "QUANTIZERS", {"ort-static": material._ort_static, "nncf-onnx": broken})


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where material is kept for all tests: the tiny checkpoint has the same bytes each time, and so the same key."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def measured_here(monkeypatch, capsys):
    """Workers run in this process, which saves their imports; the ceilings are made up."""

    def run(module, arguments, work, timeout_s):
        if module == peers.CEILING:
            return CEILINGS
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["worker", *arguments])
        worker.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(peers, "measure", run)
    monkeypatch.setattr(worker, "without_telemetry", lambda: None)
    monkeypatch.setattr(peers, "without_telemetry", lambda: None)


def arguments(folder, work, checkpoint, *more):
    return [
        "--teacher",
        str(checkpoint),
        "-o",
        str(folder / "found.json"),
        "--work",
        str(work),
        "--rounds",
        "2",
        "--seconds",
        "0.02",
        "--samples",
        "4",
        "--methods",
        "torch-eager",
        "ort-fp32",
        "ort-static-int8",
        "nncf-ort-int8",
        OURS,
        *more,
    ]


def test_every_contender_is_measured_or_says_why_not(quantizers, measured_here, make_checkpoint, work, tmp_path):
    checkpoint = make_checkpoint()
    assert peers.main(arguments(tmp_path, work, checkpoint, "--student", str(checkpoint))) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["format"] == "t2v-benchmark-peers" and found["rounds"] == 2 and found["machine"]["cores"]
    assert [(c["model"], c["method"]) for c in found["contenders"]] == [
        (m, how.name)
        for m in ("teacher", "student")
        for how in METHODS
        if how.name in ("torch-eager", "ort-fp32", "ort-static-int8", "nncf-ort-int8", OURS)
    ]
    by_name = {c["method"]: c for c in found["contenders"] if c["model"] == "teacher"}
    assert by_name.pop("nncf-ort-int8")["reason"] == "its tool failed: RuntimeError: this tool is broken"
    for name, contender in by_name.items():
        assert set(contender["figures"]) == FIGURES, name
        assert all(len(f["rounds"]) == 2 and f["min"] <= f["median"] <= f["max"] for f in contender["figures"].values())
    assert by_name["torch-eager"]["psnr_db"] > 60 and by_name["ort-fp32"]["psnr_db"] == 100
    assert 20 < by_name["ort-static-int8"]["psnr_db"] < 60
    # Two doublings of a 4x4 stem from 12 channels to 8 (the first width twice) and the colours, all kernels 3x3.
    macs = found["models"]["teacher"]["render_gmac"] * 1e9
    assert macs == 14 * 12 * 16 + 9 * (12 * 12 * 64 + 12 * 8 * 256 + 8 * 3 * 256)


def test_check_exits_3_where_a_ratio_is_missed(quantizers, measured_here, make_checkpoint, work, tmp_path, monkeypatch):
    checkpoint = make_checkpoint()
    few = arguments(tmp_path, work, checkpoint, "--rounds", "1", "--methods", "ort-fp32", OURS, "--check")
    assert peers.main(few) == 3  # no student, so nothing is kept
    monkeypatch.setattr(peers, "demands", lambda contenders: [])
    assert peers.main(few) == 0


def test_material_is_made_once(quantizers, make_checkpoint, work, tmp_path):
    checkpoint = make_checkpoint()
    bundle = prepare(checkpoint, work, 4, 0) / "bundle"
    doing = []
    first = prepare(checkpoint, tmp_path, 4, 0, bundle, doing.append)
    assert doing == ["our export", "calibration set", "ort-static", "nncf-onnx"]
    assert prepare(checkpoint, tmp_path, 4, 0, bundle, doing.append) == first and len(doing) == 4
    assert prepare(checkpoint, tmp_path, 5, 0, bundle, doing.append) != first
    assert (first / "bundle/manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    assert failures(first) == {"nncf-onnx": "RuntimeError: this tool is broken"}


def test_contenders_of_one_seed_show_the_same_clip(quantizers, make_checkpoint, work):
    checkpoint = make_checkpoint()
    made = prepare(checkpoint, work, 4, 0)
    runners = [how for how in METHODS if how.graphs in ("", "plain") and how.runner not in ("torch-compile", OURS)]
    clips = {}
    for how in runners:
        if how.runner == "openvino" and find_spec("openvino") is None:
            continue
        with open_pipeline(how, checkpoint, made) as pipeline:
            clips[how.name] = [f.pixels for f in pipeline.stream("a person is running", fps=60, seconds=0.5, seed=3)]
    wanted = np.stack(clips.pop("ort-fp32")).astype(int)
    assert len(wanted) == 30 and clips
    for name, clip in clips.items():
        assert np.abs(np.stack(clip) - wanted).max() <= 1, name  # rounding of another order of sums


def test_a_student_must_not_be_a_checkpoint_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "without_telemetry", lambda: None)
    assert peers.main(["--teacher", str(tmp_path), "-o", str(tmp_path / "x.json")]) == 1
    assert "config.json" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


def test_a_plot_is_drawn_of_results(quantizers, measured_here, make_checkpoint, work, tmp_path):
    pytest.importorskip("matplotlib")
    few = ["--rounds", "1", "--methods", "torch-eager", "ort-fp32", OURS, "--plot", str(tmp_path / "fps.svg")]
    assert peers.main(arguments(tmp_path, work, make_checkpoint(), *few)) == 0
    drawn = (tmp_path / "fps.svg").read_text()
    # a bar for each of three contenders, ours in its own colour
    assert drawn.count("fill: #8b9bb4") == 2 and drawn.count("fill: #4c8dff") == 1


def test_a_measuring_process_has_no_settings_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    made = environment(tmp_path)
    assert not {"OMP_NUM_THREADS", "OPENBLAS_CORETYPE"} & set(made) and made["PATH"] == os.environ["PATH"]
    assert made["T2V_EDGE_CACHE"] == str(tmp_path / "cache")


def test_a_process_that_fails_tells_its_last_line(tmp_path):
    with pytest.raises(ProcessError, match="No module named benchmarks.absent"):
        measure("benchmarks.absent", [], tmp_path, 30)


def test_memory_at_its_highest_is_no_less_than_now():
    held = np.ones(4 << 20)  # 32 MiB
    now, peak = memory()
    assert peak >= now > held.nbytes / (1 << 20)


def test_ceilings_are_rates_of_the_fastest_library():
    found = ceiling.measure_ceilings((64,), seconds=0.01)
    assert set(found) == {"fp32", "int8"} and {"numpy", "torch", "onnxruntime"} <= set(found["fp32"]["all"])
    for precision in found.values():
        assert precision["best"] == max(precision["all"].values()) > 0.1


def test_graphs_that_ceilings_are_measured_with_multiply(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    for graph, feed in (
        (ceiling.float_graph(8), random.standard_normal((8, 8)).astype(np.float32)),
        (ceiling.integer_graph(8), random.integers(0, 256, (8, 8)).astype(np.uint8)),
    ):
        weight = next(t for t in graph.graph.initializer if t.name == "w")
        from onnx import numpy_helper

        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        wanted = feed.astype(np.float64) @ numpy_helper.to_array(weight).astype(np.float64)
        np.testing.assert_allclose(session.run(None, {"x": feed})[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_method_is_found_by_name():
    assert method("openvino-int8").graphs == "nncf-openvino"
    with pytest.raises(KeyError):
        method("peer")
