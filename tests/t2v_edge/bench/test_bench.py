"""The benchmark's arithmetic and form, on a tiny bundle and a clock that counts its readings: nothing here is timed."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from fractions import Fraction
from hashlib import sha256
from itertools import count

import pytest

from t2v_edge.bench import frames as module
from t2v_edge.bench.frames import CAPTIONS, CHANGES, FIRSTS, MIN_FRAMES, BenchOptions, bench, describe_machine
from t2v_edge.bench.pace import Pace, PaceClock
from t2v_edge.bench.report import BenchReport, CaptionChange, FreeRun, table
from t2v_edge.cli import main
from t2v_edge.device.power import Power, PowerReading, PowerSampler, PowerTool, parse_tegrastats
from t2v_edge.device.system import NvpModelMode, PythonFacts, System
from t2v_edge.errors import EngineError, UsageError
from t2v_edge.pipeline import Pipeline
from t2v_edge.play.model import Model
from t2v_edge.play.stream import FrameStream
from t2v_edge.util.memory import ProcessMemory
from t2v_edge.util.timing import Latency

ENGINE = {"engine": "onnxruntime", "threads": 1}


@pytest.fixture(autouse=True)
def unwarmed(monkeypatch):
    monkeypatch.setattr(module, "WARM_S", 0.0)


def no_tool(gpu):
    return None


def ticking():
    """A clock that is a millisecond further whenever it is asked, and has no patience to sleep."""
    ticks, cpu = count(), count()
    return PaceClock(now=lambda: next(ticks) / 1000, cpu=lambda: next(cpu) / 100, sleep=lambda seconds: None)


def measure(path, fps=None, seconds=0.05, **others):
    options = BenchOptions(fps, seconds, **ENGINE)
    return bench(path, options, clock=ticking(), tool=no_tool, **others)


def test_frames_are_counted_over_the_time_they_took(bundle_path):
    report = measure(bundle_path)
    assert report.free.frames == 51 and report.free.fps == pytest.approx(1000)
    assert report.free.frame.count == 51 and report.free.frame.median_ms == pytest.approx(1)
    assert report.free.to_json()["cpu_share"] == pytest.approx(0.01 / 0.051)
    assert report.open_ms == pytest.approx(1)
    assert report.stages["motion"].count == report.stages["render"].count == 51, "16 fps: a motion step a frame"
    assert report.real_time is None and report.options["fps"] is None and report.shown_fps == 16


def test_first_frames_are_of_captions_never_seen_and_the_text_stage_is_timed_on_them(bundle_path, monkeypatch):
    seen = []
    encode = Model.encode

    def watched(self, caption):
        condition = encode(self, caption)
        seen.append(condition)
        return condition

    monkeypatch.setattr(Model, "encode", watched)
    report = measure(bundle_path)
    assert report.first_frame.count == report.stages["text"].count == FIRSTS
    assert report.first_frame.median_ms == pytest.approx(1)
    fresh = [condition.caption for condition in seen if condition.fresh]
    assert sorted(fresh) == sorted(CAPTIONS), "each once: the warm-up's, those of first frames, those of changes"
    assert len(set(CAPTIONS)) == FIRSTS + CHANGES + 1


@pytest.mark.parametrize("fps, most", [(None, 1), (64, 7)])
def test_a_change_is_waited_for_until_a_frame_carries_it(bundle_path, fps, most):
    # At 64 fps four frames lie between two steps of 16: the step under way and the one after it are already made.
    change = measure(bundle_path, fps).change
    assert change.latency.count == CHANGES and change.most_frames == most
    assert change.latency.median_ms == pytest.approx(1)


def test_a_rate_asks_for_a_run_in_real_time_after_a_shorter_free_one(bundle_path, monkeypatch):
    monkeypatch.setattr(module, "FREE_S", 0.02)
    monkeypatch.setattr(module, "CHANGE_S", 0.05)
    streams = []
    stream = Pipeline.stream

    def watched(self, caption, **options):
        streams.append(options["then"])
        return stream(self, caption, **options)

    monkeypatch.setattr(Pipeline, "stream", watched)
    report = measure(bundle_path, "30000/1001", seconds=0.2)
    assert report.free.frames == 21
    assert report.real_time.frames == 6 and report.real_time.frame.count == 6, "0.2 s at 29.97 fps"
    assert report.stages["render"].count == 7, "the first frame comes before the time starts"
    assert [at for at, _ in streams[-1]] == pytest.approx([0.05, 0.1, 0.15])
    data = report.to_json()
    assert data["shown_fps_exact"] == "30000/1001" and data["real_time"]["fps"] == pytest.approx(29.97, abs=0.01)


def test_progress_is_told_by_phase_and_ends_with_the_whole(bundle_path):
    told = []
    measure(bundle_path, 50, advance=lambda *step: told.append(step))
    assert list(dict.fromkeys(phase for phase, _ in told)) == [
        "warming up",
        "first frames",
        "caption changes",
        "as fast as it goes",
        "in real time",
    ]
    assert list(dict(told).values()) == [1.0] * 5, "the last of each phase"
    assert all(0 < share <= 1 for _, share in told)


def test_power_is_that_of_the_last_run(bundle_path, monkeypatch):
    asked, sampled = [], []

    class Instant(PowerSampler):
        """Starts nothing and has a reading at once: how many samplers there were is its watts."""

        def __enter__(self):
            if self._tool is not None:
                sampled.append(self._tool.name)
                self.add(PowerReading({"VDD_IN": float(len(sampled))}, 7.0))
            return self

    def tool(gpu):
        asked.append(gpu)
        return PowerTool("tegrastats", ("never", "run"), parse_tegrastats, ("VDD_IN",))

    monkeypatch.setattr(module, "PowerSampler", Instant)
    report = bench(bundle_path, BenchOptions(None, 0.05, **ENGINE), clock=ticking(), tool=tool)
    assert asked == [False], "ONNX Runtime runs on the CPU: a GPU's power is not this bundle's"
    assert report.power.total_w == 1.0 and report.power.device_memory_mib == 7
    assert report.energy_mj == pytest.approx(1000 / report.free.fps)
    assert "VDD_IN 1.00 W" in report.to_text() and "mJ a frame" in report.to_text()
    report = bench(bundle_path, BenchOptions(64, 0.05, **ENGINE), clock=ticking(), tool=tool)
    assert len(sampled) == 2 and report.energy_mj == pytest.approx(2000 / 64), "of the run in real time alone"


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"fps": 1000, "seconds": 1e6}, "fewer --seconds"),
        ({"fps": "fast"}, "fps is 'fast'"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_opened(wrong, words):
    with pytest.raises(UsageError, match=words):
        BenchOptions(**wrong)


def test_a_stream_that_never_shows_a_change_is_no_endless_loop(bundle_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CHANGE_FRAMES", 20)
    monkeypatch.setattr(FrameStream, "set_caption", lambda self, caption: 99)
    with pytest.raises(EngineError, match="20 frames came without a new caption"):
        measure(bundle_path)


def test_a_free_run_has_some_frames_however_short_it_is(bundle_path):
    assert measure(bundle_path, seconds=1e-9).free.frames == MIN_FRAMES


def sample(**changes):
    latency = Latency(3, 1.0, 2.0, 3.0, 4.0, 0.5)
    report = BenchReport(
        bundle="small",
        manifest_sha256="0" * 64,
        options={"fps": "60"},
        size=(256, 128),
        shown_fps=Fraction(60),
        base_fps=Fraction(16),
        engines=dict.fromkeys(("text", "motion", "render"), "openvino"),
        variants={"text": "fp16", "motion": "fp32", "render": "int8-u8"},
        open_ms=90.0,
        stages={"text": latency, "motion": Latency(0), "render": latency},
        first_frame=latency,
        change=CaptionChange(latency, 4),
        free=FreeRun(300, 2.0, 3.0, latency),
        real_time=None,
        memory=ProcessMemory(100 << 20, 150 << 20),
        gpu_memory_mib=None,
        power=Power(),
        machine={"cpu": "x"},
        versions={"python": "3"},
        date="2026-11-24",
    )
    return dataclasses.replace(report, **changes)


def test_the_table_is_aligned_and_says_what_is_missing():
    lines = sample().to_text().splitlines()
    head = next(line for line in lines if line.endswith("jitter"))
    rows = lines[lines.index(head) :][:7]
    assert {len(row) for row in rows} == {len(head)}
    assert rows[2].split() == ["motion", "0", "-", "-", "-", "-", "-"]
    assert "150.0 frames a second, one after another" in lines
    assert "memory: 150 MiB at its highest" in lines and lines[-1] == "power: no tool for it here"
    assert table([("a", "bb"), ("ccc", "d")]) == ["  a    bb", "  ccc   d"]


def test_late_frames_headroom_and_gpu_memory_are_said_where_there_are_any():
    pace = Pace(60.0, 3600, 5, 12.34, 0.721, 0.5, 4.0, Latency(3600, 4.0, 5.0, 6.0, 7.0, 1.0), 0)
    text = sample(real_time=pace, gpu_memory_mib=321.4, power=Power("nvidia-smi")).to_text()
    assert "in real time at 60 fps: 5 of 3600 frames late, by up to 12.3 ms; 72 % of the time free" in text
    assert "321 MiB on the GPU" in text and "nvidia-smi gave no value" in text
    assert "frames late;" in sample(real_time=dataclasses.replace(pace, late=0)).to_text()


def test_the_board_its_power_mode_and_gpus_are_of_the_result_and_its_python_is_not():
    python = PythonFacts((3, 10, 12), "aarch64", prefix="/home/someone/venv")
    system = System(
        python,
        l4t="36.4.3",
        jetpack="6.2",
        board="NVIDIA Jetson AGX Orin Developer Kit",
        power_mode=NvpModelMode(0, "MAXN"),
        gpus=("Orin",),
        driver="540.4.0",
        memory_bytes=64 << 30,
    )
    found = describe_machine(system)
    assert {name: found[name] for name in ("jetpack", "power_mode", "gpus", "gpu_driver", "memory_mib")} == {
        "jetpack": "6.2",
        "power_mode": "MAXN",
        "gpus": ["Orin"],
        "gpu_driver": "540.4.0",
        "memory_mib": 65536,
    }
    assert "someone" not in json.dumps(found)
    line = sample(machine=found).to_text().splitlines()[2]
    assert line == "on Orin, NVIDIA Jetson AGX Orin Developer Kit, JetPack 6.2, mode MAXN"
    bare = describe_machine(System(python))
    assert bare["board"] is bare["jetpack"] is bare["power_mode"] is bare["memory_mib"] is None and bare["gpus"] == []
    assert sample(machine=bare).to_text().splitlines()[2] == f"on {bare['cpu']}"


def test_energy_is_of_the_rate_that_power_was_measured_at():
    power = Power("tegrastats", 1, {"VIN": 30.0}, {"VIN": 30.0}, "VIN")
    pace = Pace(60.0, 1, 0, 0.0, 1.0, 0.0, 1.0, Latency(1), 0)
    assert sample(power=power).energy_mj == pytest.approx(200), "150 frames a second"
    assert sample(power=power, real_time=pace).energy_mj == pytest.approx(500)
    assert sample(power=dataclasses.replace(power, total=None)).energy_mj is None


def run_bench(*arguments):
    return main(["bench", *map(str, arguments), "--engine", "onnxruntime", "--threads", "1", "--seconds", "0.1"])


def test_a_report_can_be_contributed_and_names_nobody(bundle_path, tmp_path, capsys):
    target = tmp_path / "made" / "my-board.json"
    assert run_bench(bundle_path, "--fps", "100", "--seed", "3", "--report", target, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    text = target.read_text("utf-8")
    assert json.loads(text) == shown
    assert shown["format"] == "t2v-bench" and shown["schema_version"] == 1
    assert shown["bundle"] == "tiny"
    assert shown["manifest_sha256"] == sha256((bundle_path / "manifest.json").read_bytes()).hexdigest()
    assert shown["options"]["seed"] == 3 and shown["engines"]["render"] == "onnxruntime"
    assert shown["variants"] == {"text": "fp32", "motion": "fp32", "render": "fp32"}
    assert shown["real_time"]["frames"] == 10 and shown["memory"]["peak_mib"] > 1
    assert {"cpu", "cores", "system", "usable_cores"} <= shown["machine"].keys()
    assert {"python", "t2v-edge", "numpy", "onnxruntime"} <= shown["versions"].keys()
    assert set(shown["stages"]["render"]) == {"count", "median_ms", "p95_ms", "p99_ms", "max_ms", "jitter_ms"}
    for private in (str(bundle_path), str(tmp_path), socket.gethostname(), os.path.expanduser("~") + "/"):
        assert private not in text


def test_people_get_a_table(bundle_path, capsys):
    assert run_bench(bundle_path) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny: 16x16, a stream of 16 fps") and "caption to first frame" in out


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["{b}", "--report", "x.txt"], 2, ".json"),
        (["{b}", "--fps", "never"], 2, "fps"),
        (["{b}", "--variant", "int8"], 2, "fp32, fp16"),
        (["nowhere", "--report", "x.json"], 1, "t2v-edge export"),
        (["{b}", "--report", "{b}/manifest.json/x.json"], 1, "cannot be written"),
    ],
)
def test_errors_name_the_remedy_and_leave_nothing_behind(
    bundle_path, tmp_path, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    assert run_bench(*(word.replace("{b}", str(bundle_path)) for word in arguments)) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
    assert os.listdir(tmp_path) == []


def test_ctrl_c_writes_nothing(bundle_path, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "keep_pace", interrupted)
    assert run_bench(bundle_path, "--fps", "16", "--report", tmp_path / "x.json") == 130
    assert os.listdir(tmp_path) == [] and capsys.readouterr().out == ""
