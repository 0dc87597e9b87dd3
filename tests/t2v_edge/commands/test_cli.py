from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import pytest

import t2v_edge
from t2v_edge.cli import main, make_parser
from t2v_edge.commands.run import open_stream, plan_captions
from t2v_edge.errors import UsageError
from t2v_edge.pipeline import Pipeline

ROOT = str(Path(t2v_edge.__file__).parents[1])
WALK = "a person is walking"


def start(*arguments, **options):
    command = [sys.executable, "-m", "t2v_edge", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    # a shell starts what it runs in the background with Ctrl-C ignored, and children would inherit that
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def run_json(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_writes_the_frames_asked_for_at_their_times(bundle_path, tmp_path, capsys):
    target = tmp_path / "x.mp4"
    report = run_json(capsys, "run", bundle_path, WALK, "-o", target, "--fps", "72", "--seconds", "4")
    with av.open(str(target)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(index, 72) for index in range(288)]
    assert report["frames"] == 288 and report["shown_fps"] == 72
    assert report["fps"] > 0 and report["caption_to_first_frame_ms"] > 0
    assert {stage: s["count"] for stage, s in report["stages"].items()} == {"text": 1, "motion": 65, "render": 288}


def test_run_twice_with_one_seed_gives_identical_pixels(bundle_path, capsys):
    seeds = (5, 5, 6)
    once, again, other = (run_json(capsys, "run", bundle_path, WALK, "--seed", s)["pixels_sha256"] for s in seeds)
    assert {"machine", "versions"} <= run_json(capsys, "run", bundle_path, WALK, "--seed", "0").keys()
    assert once == again != other


@pytest.mark.parametrize(
    "target, asked, ahead",
    [(("-o", "x.png"), (), True), (("--json",), (), True), (("-o", "-"), (), False), (("-o", "-"), ("--ahead",), True)],
)
def test_files_are_made_ahead_and_what_is_shown_where_asked(bundle_path, monkeypatch, target, asked, ahead):
    opened = []

    def open_pipeline(*args, **options):
        opened.append(options["ahead"])
        raise UsageError("enough")

    monkeypatch.setattr("t2v_edge.pipeline.Pipeline.open", open_pipeline)
    assert main(["run", str(bundle_path), "a person is walking", *target, *asked]) == 2
    assert opened == [ahead]


def test_run_takes_captions_size_smoothing_sheet_and_variant(bundle_path, tmp_path, capsys):
    report = run_json(
        capsys,
        "run",
        bundle_path,
        "一个人",
        "--then",
        "1.5",
        WALK,
        "-o",
        tmp_path / "f" / "%03d.png",
        "--sheet",
        tmp_path / "s.png",
        "--size",
        "40x24",
        "--smoothing",
        "0.5",
        "--variant",
        "fp16",
        "--threads",
        "1",
    )
    assert report["frames"] == 88, "4 seconds after the last caption"
    assert report["captions"] == [{"seconds": 0.0, "caption": "一个人"}, {"seconds": 1.5, "caption": WALK}]
    assert report["variants"] == {"text": "fp16", "motion": "fp16", "render": "fp16"}
    assert len(os.listdir(tmp_path / "f")) == 88
    assert cv2.imread(str(tmp_path / "f" / "087.png")).shape == (24, 40, 3)
    assert (tmp_path / "s.png").exists()


STORY = "WEBVTT\n\n00:01.000 --> 00:02.000\na person is walking\n\n00:02.500 --> 00:03.000\n一个人\n"


def test_run_plays_the_cues_of_a_file_in_time(bundle_path, tmp_path, capsys):
    (tmp_path / "story.vtt").write_text(STORY)
    arguments = ("run", bundle_path, "--captions", tmp_path / "story.vtt")
    report = run_json(capsys, *arguments)
    assert report["captions"] == [{"seconds": 0.0, "caption": WALK}, {"seconds": 2.5, "caption": "一个人"}]
    assert report["frames"] == 48, "to the end of the last cue, at 16 a second"
    report = run_json(capsys, "run", bundle_path, "a person", *arguments[2:], "--seconds", "1.5")
    assert [c["seconds"] for c in report["captions"]] == [0.0, 1.0, 2.5] and report["frames"] == 24
    assert report["captions"][0]["caption"] == "a person"


@pytest.mark.parametrize("fps", ["16", "30", "72"])
def test_a_cue_shows_within_100_ms_of_its_time(bundle_path, tmp_path, fps):
    (tmp_path / "story.vtt").write_text(STORY)
    arguments = ["run", str(bundle_path), "a person", "--captions", str(tmp_path / "story.vtt"), "--fps", fps]
    args = make_parser("run").parse_args(arguments)
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        frames = list(open_stream(pipeline, args, plan_captions(args), None))
    for at, caption in ((1.0, WALK), (2.5, "一个人")):
        first = next(frame for frame in frames if frame.caption == caption)
        assert 0 <= first.pts * first.time_base - Fraction(at) <= Fraction(1, 10)


def test_run_plays_lines_and_recorded_events(bundle_path, tmp_path, capsys):
    (tmp_path / "story.txt").write_text("a person is walking\n一个人\n")
    report = run_json(capsys, "run", bundle_path, "--captions", tmp_path / "story.txt")
    assert [c["seconds"] for c in report["captions"]] == [0.0, 4.0] and report["frames"] == 128
    spoken = ("a", "a person", "a person is walking")
    (tmp_path / "story.jsonl").write_text(
        "".join(
            json.dumps({"segment": 0, "revision": i, "text": text, "final": False, "received_s": i}) + "\n"
            for i, text in enumerate(spoken)
        )
    )
    report = run_json(capsys, "run", bundle_path, "--captions", tmp_path / "story.jsonl", "--seconds", "3")
    assert report["captions"] == [{"seconds": 0.0, "caption": "a person"}, {"seconds": 2, "caption": WALK}]


def test_run_fills_stdout_with_pixels_and_reports_on_stderr(bundle_path):
    process = start("run", bundle_path, WALK, "-o", "-", "--seconds", "1", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(out) == 16 * 16 * 16 * 3
    assert json.loads(err)["frames"] == 16


def test_run_ends_quietly_when_the_reader_of_stdout_has_had_enough(bundle_path):
    process = start("run", bundle_path, WALK, "-o", "-")
    assert len(process.stdout.read(16 * 16 * 3)) == 768
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("target, seconds, code", [("-", [], 0), ("x.mp4", ["--seconds", "100000"], 130)])
def test_ctrl_c_ends_an_endless_stream_well_and_removes_a_file_cut_short(bundle_path, tmp_path, target, seconds, code):
    process = start("run", bundle_path, WALK, "-o", target, *seconds, cwd=tmp_path)
    if target == "-":
        process.stdout.read(768)
    deadline = time.monotonic() + 30
    while target != "-" and not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert b"Traceback" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["run", "{b}", WALK], 2, "nowhere to put the video"),
        (["run", "{b}", "", "-o", "x.mp4"], 1, "empty"),
        (["run", "{b}", WALK, "-o", "x.avi"], 1, "x.mp4"),
        (["run", "{b}", WALK, "-o", "x.mp4", "--fps", "fast"], 2, "fps"),
        (["run", "{b}", WALK, "-o", "x.mp4", "--then", "soon", WALK], 2, "'soon' is not a number"),
        (["run", "{b}", "-o", "x.mp4"], 2, "nothing to play"),
        (["run", "{b}", "-o", "x.mp4", "--captions", "none.vtt"], 1, "none.vtt cannot be read"),
        (["run", "{b}", "-o", "x.mp4", "--captions", "none.doc"], 1, ".vtt, .srt, .txt"),
        (["run", "{b}", "-o", "x.mp4", "--captions", "none.jsonl"], 1, "cannot be read"),
        (["run", "{b}", WALK, "-o", "x.mp4", "--variant", "int8"], 2, "fp32, fp16"),
        (["run", "{b}", WALK, "-o", "x.mp4", "--threads", "0"], 2, "threads"),
        (["run", "{b}", WALK, "--sheet", "x.jpg"], 2, ".png"),
        (["run", "nowhere", WALK, "-o", "x.mp4"], 1, "t2v-edge export"),
        (["inspect", "nowhere"], 1, "no such bundle"),
        (["devices", "abacus"], 1, "abacus"),
    ],
)
def test_errors_name_the_problem_and_the_exit_code_says_whose_it_is(
    bundle_path, tmp_path, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    assert main([a.replace("{b}", str(bundle_path)) for a in arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.startswith("t2v-edge: ")
    assert captured.out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["run"],
        ["run", "b", "c", "--size", "big"],
        ["run", "b", "c", "-o", "x", "--show"],
        ["run", "b", "--captions", "x.vtt", "--then", "1", "c"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", [[], ["run"], ["bench"], ["inspect"], ["devices"]])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert f"  t2v-edge {command[0] if command else 'run'} " in capsys.readouterr().out


def test_a_cut_caption_is_mentioned(bundle_path, tmp_path, capsys):
    assert main(["run", str(bundle_path), " ".join([WALK] * 5), "-o", str(tmp_path / "x.mp4"), "--seconds", "1"]) == 0
    assert "cut after 8 tokens" in capsys.readouterr().err


def test_inspect_shows_what_a_bundle_holds(bundle_path, capsys):
    assert main(["inspect", str(bundle_path), "--verify"]) == 0
    text = capsys.readouterr().out
    for words in ("16x16 at 16 fps", "state.hidden float32[1, 5]", "*fp32", "fp16/render.onnx", "seed: 0"):
        assert words in text
    data = run_json(capsys, "inspect", bundle_path, "--verify")
    assert data["graphs"]["fp32"]["render"]["operators"]["MatMul"] == 1
    assert data["total_bytes"] == sum(f["bytes"] for f in data["files"].values())


def test_inspect_names_the_layers_that_stay_in_float32(bundle_path, tmp_path, capsys):
    copy = tmp_path / "copy.bundle"
    shutil.copytree(bundle_path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["variants"]["fp16"]["render"]["float32_layers"] = ["/blocks.2/Conv"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(copy)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "in float32" in line]
    assert len(lines) == 1 and "fp16/render.onnx" in lines[0] and "/blocks.2/Conv" in lines[0]


def test_devices_lists_profiles_and_shows_one_with_its_sources(capsys):
    listed = run_json(capsys, "devices")
    assert "jetson-orin-nano-8gb" in [profile["name"] for profile in listed]
    assert main(["devices", "cpu"]) == 0
    assert "sources:" in capsys.readouterr().out


@pytest.fixture
def counted_path(tiny, tmp_path):
    for stage, entry in tiny.variants["fp32"].items():
        tiny.variants["fp32"][stage] = replace(entry, macs=10**6, weight_bytes=1000, activation_bytes=1000, launches=50)
    return tiny.write(tmp_path / "counted")


def test_devices_estimates_a_bundle_on_every_device_and_says_what_is_not_known(counted_path, capsys):
    found = {e["device"]: e for e in run_json(capsys, "devices", "--bundle", counted_path)}
    board, headset = found["jetson-orin-nano-8gb"], found["quest-3"]
    assert board["fps"] > 0 and board["binds"] == "launches" and board["estimate"] is True
    assert headset["fps"] is None and "dense_tops" in headset["missing"]
    assert main(["devices", "--bundle", str(counted_path)]) == 0
    shown = capsys.readouterr().out
    assert "Estimates, not measurements" in shown and "quest-3: dense_tops" in shown


def test_devices_estimates_stage_by_stage_in_a_power_mode(counted_path, capsys):
    fast, slow = (
        run_json(capsys, "devices", "--bundle", counted_path, f"jetson-agx-orin-64gb@{mode}")
        for mode in ("MAXN", "15W")
    )
    assert slow["device"] == "jetson-agx-orin-64gb@15W" and slow["fps"] < fast["fps"]
    assert slow["stages"]["render"]["launches_ms"] > fast["stages"]["render"]["launches_ms"]
    assert main(["devices", "--bundle", str(counted_path), "h200"]) == 0
    assert "caption to first frame" in (shown := capsys.readouterr().out) and "render" in shown
    assert main(["devices", "--bundle", str(counted_path), "pico-4"]) == 0
    assert "no estimate, for want of dense_tops" in capsys.readouterr().out


def test_devices_refuses_to_estimate_a_bundle_that_does_not_say_what_it_costs(bundle_path, capsys):
    assert main(["devices", "--bundle", str(bundle_path)]) == 1
    assert "export it again" in capsys.readouterr().err


def test_export_without_the_toolchain_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("t2v_export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "t2v_export", None)
    assert main(["export", "checkpoint", "-o", "bundle"]) == 2
    assert "pip install 't2v-edge[export]'" in capsys.readouterr().err
