from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.cli import main
from t2v_edge.device.profile import load_profile
from t2v_edge.pipeline import Pipeline
from t2v_edge.spec import STAGES
from t2v_export.checkpoint.config import StageConfig
from t2v_export.commands import compare as command
from t2v_export.evaluate import play
from t2v_export.evaluate.mixes import EnginePool, mixes_of
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.recipe import parse_recipe
from tests.t2v_export.compare_samples import SLOTS, changed, spoil, write_captions, write_evaluator
from tests.t2v_export.conftest import build_checkpoint

ROOT = Path(__file__).parents[3]
CAPTIONS = 12
# The renderer alone is quantized, so that the whole stream of an INT8 variant keeps FP32's motion.
RECIPE = {
    "kind": "quantize",
    "text_samples": 12,
    "motion_samples": 16,
    "render_samples": 8,
    "steps": 8,
    "stages": ["render"],
}
SMALL = [
    "--clips",
    "2",
    "--seconds",
    "0.5",
    "--drift-runs",
    "2",
    "--drift-steps",
    "40",
    "--pictures",
    "1",
    "--processes",
    "1",
    "--no-timing",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tiny and made once: `checkpoint` (with evaluator/), captions, its `bundle` with every variant, and of that
    `alone` (FP32 only), `sound` (the INT8 renderer by default), `spoilt` (the same with wrong scales).
    """
    folder = tmp_path_factory.mktemp("compare")
    build_checkpoint(folder / "checkpoint")
    options = ExportOptions(("fp32", "fp16"), measure=False, recipe=parse_recipe({"name": "t", "pass": [RECIPE]}, "t"))
    export_checkpoint(folder / "checkpoint", folder / "bundle", load_profile("cpu"), options)
    write_evaluator(folder / "checkpoint" / "evaluator")
    write_captions(folder / "captions.jsonl", [{"colour": "red"}] * CAPTIONS)
    with Bundle.open(folder / "bundle") as bundle:
        render = bundle.graph("int8-u8", "render")
    mix = {"text": "fp32", "motion": "fp32", "render": "int8-u8"}
    changed(folder / "bundle", folder / "alone", {}, dict.fromkeys(STAGES, "fp32"))
    changed(folder / "bundle", folder / "sound", {"int8-u8": {"render": render}}, mix)
    changed(folder / "bundle", folder / "spoilt", {"int8-u8": {"render": spoil(render, 3.0)}}, mix)
    return folder


def compared(place: Path, bundle: str | Path, *more: str, out: str, slots: Path | None = None, code: int = 0) -> dict:
    """Run the command; its report."""
    captions = slots or place / "captions.jsonl"
    arguments = ["compare", str(place / bundle), "-o", str(place / out), "--captions", str(captions), *SMALL, *more]
    if "--evaluator" not in more:
        arguments += ["--evaluator", str(place / "checkpoint" / "evaluator")]
    assert main(arguments) == code
    return json.loads((place / out / "report.json").read_text())


def right_captions(place: Path, bundle: str) -> Path:
    """Captions that name what the evaluator reads from FP32."""
    from t2v_export.evaluate.caption_set import read_slotted
    from t2v_export.evaluate.tasks import TaskSettings, WorkerEngines, read_caption

    with Bundle.open(place / bundle) as opened:
        mix = mixes_of(opened)[0][0]
    texts = tuple(c.text for c in read_slotted(place / "captions.jsonl"))
    setting = TaskSettings((mix,), (), texts, 0, "onnxruntime", place / "checkpoint" / "evaluator", 1, 1)
    with WorkerEngines(setting) as engines:
        read = [read_caption(engines, i)["fp32"].values for i in range(len(texts))]
    named = [{slot: values[i] for (slot, values), i in zip(SLOTS.items(), row)} for row in read]
    return write_captions(place / f"{bundle}-right.jsonl", named)


def pair(report: dict, candidate: str, baseline: str = "fp32") -> dict:
    return next(p for p in report["pairs"] if (p["candidate"], p["baseline"]) == (candidate, baseline))


def numbers_that_must_be_zero(found: dict) -> dict[str, float]:
    """Every figure of a pair that says how far apart it is."""
    figures = {"frechet": found["frechet"]}
    for slot, entry in found["accuracy"].items():
        figures |= {f"{slot}.{k}": entry[k] for k in ("points", "low", "high", "gained", "lost")}
        figures[f"{slot}.p"] = 1 - entry["p"]
    for mode in ("render_alone", "whole_stream"):
        frames = found["frames"][mode]
        figures[f"{mode}.error"] = frames["mean_abs_error"]
        figures[f"{mode}.different"] = frames["frames"] - frames["equal_frames"]
        figures[f"{mode}.ssim"] = 1 - frames["ssim"]["min"]
        figures[f"{mode}.psnr"] = 100 - frames["psnr_db"]["min"]
        changes = {k: v for k, v in found["temporal"][mode].items() if k.endswith("percent")}
        assert len(changes) == 2
        figures |= {f"{mode}.{k}": v for k, v in changes.items()}
    for what in ("state", "motion"):
        figures[f"drift.{what}"] = max(map(abs, found["drift"][what]["relative_error"]))
        figures[f"growth.{what}"] = found["drift"][what]["late_to_early"] - 1
    figures |= {k: v for k, v in found["drift"].items() if k.endswith("percent")}
    return figures


def test_an_untouched_copy_of_fp32_is_exactly_zero_everywhere(place):
    with Bundle.open(place / "bundle") as bundle:
        copy = {stage: bundle.graph("fp32", stage) for stage in STAGES}
    changed(place / "bundle", place / "copied", {"copy": copy}, dict.fromkeys(STAGES, "copy"))
    report = compared(place, "copied", "--max-drop", "0", "--min-psnr", "100", out="copied-out")
    assert report["default"]["lane"] == "copy" and [p["candidate"] for p in report["pairs"]] == ["copy"]
    figures = numbers_that_must_be_zero(pair(report, "copy"))
    assert len(figures) > 25 and set(figures.values()) == {0}
    assert report["budget"]["kept"] and report["frechet_yardstick"] > 0
    page = (place / "copied-out" / "report.html").read_text()
    assert "is exactly FP32: not one pixel differs" in page and "Within budget" in page


def test_fp32_alone_is_played_against_itself_and_repeats_exactly(place):
    report = compared(place, "alone", out="alone-out")
    assert list(report["lanes"]) == ["fp32", "default"]
    assert set(numbers_that_must_be_zero(pair(report, "default")).values()) == {0}


def test_spoilt_scales_show_and_exit_with_3_after_the_report_is_written(place, capsys):
    captions = right_captions(place, "bundle")
    demands = ["--max-drop", "20", "--min-psnr", "25"]
    good = compared(place, "sound", *demands, out="sound-out", slots=captions)
    capsys.readouterr()
    bad = compared(place, "spoilt", *demands, out="spoilt-out", slots=captions, code=3)
    told = capsys.readouterr().err
    assert "All-attributes accuracy drops" in told and "NOT kept" in told and "report.html" in told
    assert good["lanes"]["fp32"]["accuracy"]["all"]["rate"] == 1
    entry, before = pair(bad, "int8-u8")["accuracy"]["all"], pair(good, "int8-u8")["accuracy"]["all"]
    assert entry["points"] < -20 <= before["points"] and entry["low"] <= entry["points"] <= entry["high"]
    assert entry["lost"] - entry["gained"] == round(-entry["points"] / 100 * CAPTIONS) and 0 < entry["p"] < 1
    for figure in ("render_alone", "whole_stream"):
        sound_db, spoilt_db = (pair(r, "int8-u8")["frames"][figure]["psnr_db"]["mean"] for r in (good, bad))
        assert spoilt_db < 25 < sound_db
    assert pair(bad, "int8-u8")["drift"]["state"]["relative_error"][-1] == 0  # motion was left alone
    assert bad["budget"] == {**bad["budget"], "kept": False, "lane": "int8-u8"}
    assert "Not within budget" in (place / "spoilt-out" / "report.html").read_text()


def test_variants_lacking_a_stage_take_fp32_and_the_report_says_so(place):
    report = compared(place, "bundle", out="variants-out")
    assert list(report["lanes"]) == ["fp32", "fp16", "int8", "int8-u8", "default"]
    mix = report["lanes"]["int8-u8"]
    assert mix["filled_with_fp32"] == ["text", "motion"]
    assert mix["variants"] == {"text": "fp32", "motion": "fp32", "render": "int8-u8"}
    # its doublings are in phases: four taps a pixel for nine, of weights of their own for each kind of pixel
    assert 0 < mix["macs"]["render"] < report["lanes"]["fp16"]["macs"]["render"]
    assert mix["macs"]["text"] == report["lanes"]["fp16"]["macs"]["text"] > 0
    assert mix["parameters"]["render"] > report["lanes"]["fp32"]["parameters"]["render"]
    found = pair(report, "int8-u8")
    assert found["clips_with_the_same_motion"] == 2
    assert found["frames"]["whole_stream"] == found["frames"]["render_alone"]
    assert 20 < found["frames"]["render_alone"]["psnr_db"]["mean"] < 100
    half = pair(report, "fp16")
    assert 0 < half["drift"]["state"]["late"] < 0.05 and half["clips_with_the_same_motion"] == 0
    assert half["frames"]["whole_stream"] != half["frames"]["render_alone"]


def test_the_same_command_gives_the_same_bytes_in_one_process_and_in_two(place):
    for out, processes in (("once", "1"), ("again", "2")):
        compared(place, "sound", "--processes", processes, out=out)
    for name in ("report.json", "report.html"):
        one, other = ((place / out / name).read_bytes() for out in ("once", "again"))
        assert one == other


def test_timing_gives_percentiles_and_memory_of_every_mix(place, monkeypatch):
    monkeypatch.setattr("t2v_export.compare.measures.cost.MAX_TURNS", 5)
    arguments = [
        "compare",
        str(place / "alone"),
        "-o",
        str(place / "timed"),
        "--captions",
        str(place / "captions.jsonl"),
        *SMALL[:-1],
        "--drift-runs",
        "0",
    ]
    assert main(arguments) == 0
    report = json.loads((place / "timed" / "report.json").read_text())
    for mix in report["lanes"].values():
        assert mix["peak_memory_bytes"] > 0
        for what in (*STAGES, "frame", "caption_to_first_frame"):
            spans = mix["latency_ms"][what]
            assert 0 < spans["p50"] <= spans["p95"] <= spans["p99"] and spans["runs"] == 5
        frame, first = (mix["latency_ms"][what]["p50"] for what in ("frame", "caption_to_first_frame"))
        assert frame < first
    assert any("evaluator" in s for s in report["absent"]) and any("Drift" in s for s in report["absent"])
    assert "frechet" not in report["pairs"][0] and "accuracy" not in report["pairs"][0]


def test_against_a_checkpoint_its_evaluator_and_what_is_comparable_are_used(place, tmp_path):
    student = {"motion": StageConfig("recurrent", {"cell": "gru", "hidden": 4, "noise": 2, "start": "zeros"})}
    build_checkpoint(tmp_path / "student", **student)
    export_checkpoint(
        tmp_path / "student", tmp_path / "bundle", load_profile("cpu"), ExportOptions(("fp32",), measure=False)
    )
    target = tmp_path / "out"
    assert (
        main(
            [
                "compare",
                str(tmp_path / "bundle"),
                "--against",
                str(place / "checkpoint"),
                "-o",
                str(target),
                "--captions",
                str(place / "captions.jsonl"),
                *SMALL,
            ]
        )
        == 0
    )
    report = json.loads((target / "report.json").read_text())
    assert report["against"] == "checkpoint" and "against" in report["lanes"]
    found = pair(report, "fp32", "against")
    assert found["accuracy"]["all"]["count"] == CAPTIONS and found["frechet"] > 0
    # The student starts at zeros, the teacher at drawn states: step noises of one seed are not the same then.
    assert "frames" not in found or found["frames"] == {}
    assert not {"state", "motion"} & set(found["drift"]) and found["drift"]["speed_change_percent"] != 0
    assert any("noises" in sentence for sentence in report["absent"])
    assert "checkpoint (FP32)" in (target / "report.html").read_text()


def test_against_a_bundle_compares_frames_too_and_never_imports_torch(place):
    code = (
        "import sys; from t2v_edge.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    arguments = [
        "compare",
        place / "sound",
        "--against",
        place / "alone",
        "-o",
        place / "both",
        "--captions",
        place / "captions.jsonl",
        "--evaluator",
        place / "checkpoint" / "evaluator",
        *SMALL,
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "both" / "report.json").read_text())
    same, other = pair(report, "fp32", "against"), pair(report, "int8-u8", "against")
    assert set(numbers_that_must_be_zero(same).values()) == {0}
    assert other["frames"]["whole_stream"] == pair(report, "int8-u8")["frames"]["whole_stream"]


class Page(HTMLParser):
    """Checks that tags are closed, and gathers what a browser would fetch."""

    VOID = {"meta", "img", "br", "line", "circle", "polyline"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.sections: dict[str, str] = {}
        self.headings = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.fetched += [v for k, v in given.items() if k in ("src", "href", "srcset")]
        self.headings += tag == "h2"
        if tag == "p" and given.get("class") == "explain":
            self.sections[str(self.headings)] = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "p" and str(self.headings) in self.sections:
            self.sections[str(self.headings)] += data

    def handle_startendtag(self, tag, attrs):
        self.fetched += [v for k, v in dict(attrs).items() if k in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_one_sound_file_that_fetches_nothing_and_explains_each_figure(place):
    report = compared(place, "bundle", out="page-out")
    text = (place / "page-out" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched and all(source.startswith("data:image/jpeg;base64,") for source in page.fetched)
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.headings == len(page.sections) >= 8
    assert all(len(sentence) > 30 and sentence.rstrip().endswith(".") for sentence in page.sections.values())
    assert len(text) < 5_000_000 and "prefers-color-scheme" in text and "None" not in text and "nan" not in text.lower()
    for mix in report["lanes"]:
        assert mix in text
    assert "must never be compared with published" in text and "ensitiv" in text


def test_captions_are_escaped_on_the_page(place, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a person <script>alert(1)</script> is walking\n")
    report = compared(place, "alone", "--captions", str(captions), out="escaped")
    text = (place / "escaped" / "report.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert any("no caption says what it names" in s for s in report["absent"])


def test_sensitivity_of_the_bundles_report_is_shown(place, tmp_path):
    from t2v_edge.bundle.bundle import write_bundle

    with Bundle.open(place / "alone") as bundle:
        files = {name: bundle.read(name) for name in bundle.manifest.files}
        manifest = bundle.manifest
    rows = {"render": [{"layer": "/blocks.0/Conv", "psnr_db": 31.25}, {"layer": "/blocks.1/Conv", "psnr_db": 44.5}]}
    files["report.json"] = json.dumps({**json.loads(files["report.json"]), "sensitivity": rows}).encode()
    write_bundle(place / "ranked", manifest, files)
    report = compared(place, "ranked", out="ranked-out")
    assert report["sensitivity"] == rows
    text = (place / "ranked-out" / "report.html").read_text()
    assert "/blocks.0/Conv" in text and "31.25" in text and "no sensitivity analysis" not in text


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--max-drop", "1", "--captions", "{p}/captions.jsonl"], 2, "--evaluator"),
        (["--max-drop", "1", "--evaluator", "{p}/checkpoint/evaluator", "--captions", "en"], 2, "slots"),
        (["--captions", "{p}/captions.jsonl", "-n", "13"], 2, "12 captions, 13 were asked for"),
        (["--captions", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["--evaluator", "{p}", "--captions", "{p}/captions.jsonl"], 1, "evaluator.json"),
        (["--evaluator", "{p}/checkpoint/evaluator"], 2, "does not know"),
        (["--seconds", "0"], 2, "seconds"),
        (["--processes", "0"], 2, "processes"),
        (["--against", "{p}/nowhere"], 1, "nowhere"),
        (["-o", "{p}/checkpoint"], 1, "left alone"),
        (["--variant", "int9", "--captions", "{p}/captions.jsonl", "-n", "1"], 2, "fp32, default"),
    ],
)
def test_errors_name_the_problem_and_nothing_is_written(place, tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    given = ["compare", str(place / "alone"), *SMALL, *(a.replace("{p}", str(place)) for a in arguments)]
    assert main(given) == code
    assert words in capsys.readouterr().err and os.listdir(tmp_path) == []
    assert (place / "checkpoint" / "config.json").is_file()


def test_help_teaches_and_the_missing_toolchain_is_named(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--help"])
    assert stopped.value.code == 0 and "  t2v-edge compare " in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "t2v_export", None)
    for name in [name for name in sys.modules if name.startswith("t2v_export.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["compare", "bundle"]) == 2
    assert "pip install 't2v-edge[export]'" in capsys.readouterr().err


def test_summary_as_json_leaves_long_curves_out(place, capsys):
    compared(place, "alone", "--json", "--drift-steps", "400", out="json-out")
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == "t2v-compare" and pair(shown, "default")["drift"]["state"]["late_to_early"] == 1
    assert "relative_error" not in pair(shown, "default")["drift"]["state"]


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes in /proc")
def test_ctrl_c_ends_all_processes_and_leaves_nothing(place, tmp_path):
    arguments = [
        "compare",
        place / "alone",
        "-o",
        tmp_path / "out",
        "--captions",
        place / "captions.jsonl",
        "--drift-steps",
        "5000000",
        "--drift-runs",
        "2",
        "--clips",
        "1",
        "--processes",
        "2",
        "--no-timing",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "t2v_edge", *map(str, arguments)],
        env=environment(),
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Ctrl-C is ignored in what a shell runs in the background, and in its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(process.pid)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    try:
        error = process.communicate(timeout=30)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 130 and error.endswith("t2v-edge: interrupted\n") and "Traceback" not in error
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 3 and not any(map(runs, workers))  # two that play, and multiprocessing's own tracker
    assert os.listdir(tmp_path) == []


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.is_file() else []


def runs(pid: int) -> bool:
    """Whether a process is there, and more than a dead one that nobody asked after."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment() -> dict[str, str]:
    roots = (ROOT, ROOT / "export", ROOT / "calibration")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}


def test_play_makes_the_pixels_that_the_runtime_streams(place):
    with Bundle.open(place / "bundle") as bundle, EnginePool("onnxruntime", 1) as pool:
        mix = mixes_of(bundle)[0][0]
        mine = pool.pipeline(mix)
        played = play.take(mine, ((0, "a person is walking"), (8, "a person is running")), 5, 17)
        frames = [play.render_at(mine, played, step / 2) for step in range(32)]
    with Pipeline.open(place / "bundle", engine="onnxruntime", variant="fp32", threads=1) as theirs:
        stream = theirs.stream("a person is walking", then=[(0.5, "a person is running")], fps=32, seconds=1, seed=5)
        assert all(np.array_equal(frame.pixels, mine) for frame, mine in zip(stream, frames, strict=True))


def test_options_take_the_evaluator_of_the_checkpoint_that_is_compared_with(place):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["b", "--against", str(place / "checkpoint"), "--captions", str(place / "captions.jsonl")])
    assert command.options_of(args).evaluator == place / "checkpoint" / "evaluator"
