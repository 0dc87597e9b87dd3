from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import peers as gpu_peers
from benchmarks.gpu import read as gpu_read
from benchmarks.gpu import summary as gpu_summary
from benchmarks.gpu.__main__ import Step, run, steps_of
from tests.benchmarks.gpu.test_build import Here
from tests.t2v_edge.engine.tensorrt.test_build import make_bundle
from tests.t2v_edge.fake_gpu import FakeCuda, install

ROOT = Path(__file__).parents[3]
HELDOUT = ROOT / "calibration" / "captions" / "heldout.jsonl"
WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"


def step(name, told, status=0, **more):
    """A step that adds its name to a file, and ends so."""
    return Step(name, (sys.executable, "-c", WRITE, str(told), name, str(status)), **more)


def asked(tmp_path, *more):
    for name in ("checkpoint", "bundle"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "captions").touch()
    return [
        "--checkpoint",
        str(tmp_path / "checkpoint"),
        "--bundle",
        str(tmp_path / "bundle"),
        "--captions",
        str(tmp_path / "captions"),
        "-o",
        str(tmp_path / "out"),
        *more,
    ]


def test_a_second_call_does_what_is_not_done_and_what_reads_it(tmp_path, capsys):
    told, out = tmp_path / "told", tmp_path / "out"
    steps = [
        step("a", told),
        step("b", told, after=("a",)),
        step("c", told, after=("b",)),
        step("d", told),
        step("e", told, after=("c", "d"), again=True),
    ]
    assert run(steps, out) == 0 and told.read_text() == "abcde"
    assert run(steps, out) == 0 and told.read_text() == "abcde" + "e"
    (out / "b.done").unlink()
    assert run(steps, out) == 0 and told.read_text() == "abcdee" + "bce"
    other = [step("a", told), steps[1], Step("c", (*steps[2].command, "otherwise"), ("b",)), *steps[3:]]
    assert run(other, out) == 0 and told.read_text() == "abcdeebce" + "ce"
    assert "a: done before" in capsys.readouterr().out


def test_what_reads_a_step_that_failed_is_left_out_and_the_others_run(tmp_path, capsys):
    told, out = tmp_path / "told", tmp_path / "out"
    steps = [step("a", told, 4), step("b", told, after=("a",)), step("c", told), step("d", told, after=("b", "c"))]
    assert run(steps, out) == 1 and told.read_text() == "ac"
    said = capsys.readouterr().out
    assert f"ended with 4; all it said is in {out / 'a.log'}" in said
    assert "b: left out, for a failed" in said and "d: left out, for b failed" in said
    assert run([step("a", told), *steps[1:]], out) == 0 and told.read_text() == "ac" + "abd"


@pytest.mark.parametrize("name, ends", [("summary", 3), ("peers", 1)])
def test_a_demand_that_is_not_kept_is_told_from_a_step_that_failed(tmp_path, name, ends):
    assert run([step(name, tmp_path / "told", 3)], tmp_path / "out") == ends


def test_steps_of_tensorrt_have_its_python_and_nothing_is_judged_without_an_evaluator(tmp_path):
    steps = steps_of(gpu._parse(asked(tmp_path, "--tensorrt-python", "/opt/python3.9")))
    assert [s.name for s in steps] == ["build", "engines", "peers", "summary"]
    assert [s.command[0] for s in steps] == ["/opt/python3.9"] * 2 + [sys.executable] * 2
    assert "--frames" not in steps[1].command


def test_wrong_use_exits_2_and_a_program_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(asked(tmp_path, "--evaluator", str(tmp_path / "nowhere")))
    assert stopped.value.code == 2 and "there is no" in capsys.readouterr().err
    assert gpu.main(asked(tmp_path, "--tensorrt-python", str(tmp_path / "no python"))) == 1
    assert "no python" in capsys.readouterr().err


def test_every_program_takes_what_it_is_given(tmp_path, monkeypatch):
    """TensorRT's steps whole, over its stand-in; of the others what can be had without a GPU."""
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    install(monkeypatch, FakeCuda(), "8.6.2")
    for name in ("gpu.build", "gpu.engines"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    programs = {name: importlib.import_module(f"benchmarks.{name}") for name in ("gpu.build", "gpu.engines")}
    monkeypatch.setattr(programs["gpu.build"], "ProcessPoolExecutor", Here)
    monkeypatch.setattr(programs["gpu.engines"], "WARM_FRAMES", 4)
    monkeypatch.setattr(programs["gpu.engines"], "FIRST_FRAMES", 2)
    monkeypatch.setattr(programs["gpu.engines"], "write_frames", lambda pipeline, captions, path: len(captions))
    bundle, evaluator = make_bundle(tmp_path / "tiny"), ROOT / "checkpoints" / "reference" / "evaluator"
    args = gpu._parse(
        [
            "--checkpoint",
            str(tmp_path),
            "--bundle",
            str(bundle),
            "--captions",
            str(HELDOUT),
            "-n",
            "2",
            "--evaluator",
            str(evaluator),
            "--level",
            "2",
            "--tactics",
            "none",
            "-o",
            str(tmp_path / "out"),
        ]
    )
    (tmp_path / "out").mkdir()
    by_name = {s.name: s.command for s in steps_of(args)}
    assert list(by_name) == ["build", "engines", "peers", "read", "judge", "summary"]

    def call(name, main, *more):
        assert by_name[name][1] == "-m"
        monkeypatch.setattr("sys.argv", [*by_name[name][2:], *more])
        return main()

    assert call("build", programs["gpu.build"].main) == 0
    assert call("engines", programs["gpu.engines"].main, "--count", "8") == 0
    parts = json.loads((tmp_path / "out" / "gpu_engines.json").read_text())["bundles"]["tiny"]
    assert not [name for name, part in parts.items() if "failed" in part], parts
    assert parts["frames int8"]["captions"] == 2 and parts["build 1"]["settings"]["tactic_sources"] == []
    given = gpu_peers._parse(by_name["peers"][3:])
    assert given.checkpoint == [tmp_path] and given.bundle == [Path(bundle)] and given.resume
    assert call("read", gpu_read.main) == 0  # of no frames
    (tmp_path / "out" / "read.json").write_text("{}")
    assert call("judge", gpu_read.main) == 0
    (tmp_path / "out" / "gpu_peers.json").write_text(json.dumps({"gpu": {"name": "another"}}))
    assert gpu_summary.main(list(by_name["summary"][3:])) == 2  # not measured on one GPU, and no wrong use
