from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from t2v_edge.cli import main
from t2v_edge.engine import choice
from t2v_edge.engine import registry as engine
from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.choice import open_stage, read_choice
from t2v_edge.engine.registry import available_engines
from t2v_edge.errors import EngineError
from t2v_edge.pipeline import Pipeline
from t2v_edge.util.cache import VARIABLE

NAMES = ("onnxruntime", "openvino")
OPTIONS = EngineOptions(1)


class FakeEngine:
    """Takes `cost` ticks of the fake clock for a run and answers `value` everywhere."""

    def __init__(self, name, spec, clock, cost, value):
        self.name, self.spec, self.clock, self.cost, self.value = name, spec, clock, cost, value
        self.runs = 0
        self.closed = False

    def run(self, feeds):
        self.runs += 1
        self.clock.now += self.cost
        return {tensor.name: np.full(tensor.shape, self.value, np.float32) for tensor in self.spec.outputs}

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Bench:
    """Two engines of known speed on a clock that only they move."""

    def __init__(self, spec):
        self.spec = spec
        self.now = 0.0
        self.cost = {"onnxruntime": 0.010, "openvino": 0.005}
        self.value = dict.fromkeys(NAMES, 1.0)
        self.broken = set()
        self.opened = []

    def perf_counter(self):
        return self.now

    def open_engine(self, name, graph, spec, options):
        if name in self.broken:
            raise EngineError(f"{name} cannot load it")
        self.opened.append(FakeEngine(name, spec, self, self.cost[name], self.value[name]))
        return self.opened[-1]

    def choose(self, graph=b"graph", options=OPTIONS):
        """The chosen engine's name, and whether it was measured."""
        self.opened.clear()
        chosen = open_stage("auto", graph, self.spec, options, {})
        assert not chosen.closed
        assert all(other.closed for other in self.opened if other is not chosen)
        return chosen.name, chosen.runs > 0


@pytest.fixture
def bench(monkeypatch, specs, tmp_path):
    bench = Bench(specs["motion"])
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "available_engines", lambda: NAMES)
    monkeypatch.setattr(choice, "open_engine", bench.open_engine)
    monkeypatch.setattr(choice, "time", bench)
    return bench


@pytest.fixture
def entry(bench, tmp_path):
    """The cache entry of a choice that was made: openvino."""
    assert bench.choose() == ("openvino", True)
    (path,) = (tmp_path / "cache" / choice.FOLDER).iterdir()
    return path


def test_the_faster_engine_is_chosen_and_then_remembered(bench):
    assert bench.choose() == ("openvino", True)
    assert bench.choose() == ("openvino", False)
    assert len(bench.opened) == 1


def test_a_difference_within_noise_keeps_the_preferred_engine(bench):
    bench.cost = {"onnxruntime": 0.0100, "openvino": 0.0097}
    assert bench.choose() == ("onnxruntime", True)


def test_timing_is_bounded_and_the_engines_take_turns(bench):
    bench.choose()
    slow, fast = bench.opened
    assert slow.runs == fast.runs
    assert bench.now <= choice.BUDGET_S + (1 + choice.WARM_RUNS) * sum(bench.cost.values()) + 1e-9
    bench.cost = {"onnxruntime": 1.0, "openvino": 2.0}  # a device on which even a few runs take longer than that
    bench.choose(b"other")
    assert [opened.runs for opened in bench.opened] == [choice.WARM_RUNS + choice.MIN_RUNS] * 2


def test_an_engine_that_computes_something_else_is_not_chosen(bench):
    bench.value["openvino"] = 1.2
    assert bench.choose() == ("onnxruntime", True)
    bench.value["openvino"] = float("nan")
    assert bench.choose(b"other") == ("onnxruntime", True)
    bench.value["openvino"] = 1.01
    assert bench.choose(b"third") == ("openvino", True)


def test_an_engine_that_cannot_load_the_graph_leaves_it_to_the_other(bench):
    bench.broken = {"onnxruntime"}
    assert bench.choose() == ("openvino", True)


def test_the_first_error_is_told_where_no_engine_can_load_the_graph(bench):
    bench.broken = set(NAMES)
    with pytest.raises(EngineError, match="onnxruntime cannot load it"):
        bench.choose()


def test_a_remembered_engine_that_fails_is_measured_again(bench, entry):
    bench.broken = {"openvino"}
    assert bench.choose() == ("onnxruntime", True)
    assert read_choice(entry, NAMES) == "onnxruntime"


@pytest.mark.parametrize("change", ["graph", "threads", "version", "machine"])
def test_a_choice_holds_for_its_graph_threads_versions_and_machine_only(bench, entry, monkeypatch, change):
    graph, options = b"graph", OPTIONS
    if change == "graph":
        graph = b"another graph"
    elif change == "threads":
        options = EngineOptions(2)
    elif change == "version":
        monkeypatch.setattr(choice.metadata, "version", lambda name: "99.0")
    else:
        monkeypatch.setattr(choice, "machine", lambda: {"cpu": "Another"})
    assert bench.choose(graph, options) == ("openvino", True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"openvino"',
        b"\xff\xfe",
        b'{"engine": null}',
        b'{"engine": ["openvino"]}',
        b'{"engine": "os"}',
        b'{"engine": "../openvino"}',
        b'{"engine": "auto"}',
        b"[" * 5000,
        b'{"engine": "openvino", "padding": "' + b"x" * choice.MAX_ENTRY_BYTES + b'"}',
    ],
)
def test_a_damaged_entry_is_measured_again_and_replaced(bench, entry, content):
    good = entry.read_bytes()
    entry.write_bytes(content)
    assert read_choice(entry, NAMES) is None
    bench.choose()
    assert read_choice(entry, NAMES) == "openvino"
    assert json.loads(entry.read_bytes())["engine"] == json.loads(good)["engine"]


def test_an_entry_is_believed_only_for_an_engine_that_is_installed(entry):
    assert read_choice(entry, NAMES) == "openvino"
    assert read_choice(entry, ("onnxruntime",)) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_entry_that_is_no_file_is_not_waited_for(bench, entry):
    entry.unlink()
    os.mkfifo(entry)
    assert bench.choose()[0] == "openvino"


def test_an_entry_that_is_a_folder_costs_only_the_memory(bench, entry):
    entry.unlink()
    entry.mkdir()
    assert bench.choose() == ("openvino", True)
    assert bench.choose() == ("openvino", True)


def test_without_a_cache_folder_the_choice_is_made_each_time(bench, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert bench.choose() == ("openvino", True)
    assert bench.choose() == ("openvino", True)


def test_an_entry_says_what_it_was_measured_on(entry):
    data = json.loads(entry.read_bytes())
    assert data["median_ms"] == pytest.approx({"onnxruntime": 10.0, "openvino": 5.0})
    assert set(data["engines"]) == set(NAMES) and data["machine"]["cpu"] and data["stage"] == "motion"
    assert len(entry.read_bytes()) < choice.MAX_ENTRY_BYTES


def test_a_named_engine_is_not_measured(bench, tmp_path):
    opened = open_stage("onnxruntime", b"graph", bench.spec, OPTIONS, {})
    assert opened.runs == 0 and len(bench.opened) == 1
    assert not (tmp_path / "cache").exists()


def test_a_single_engine_is_not_measured(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "available_engines", lambda: ("onnxruntime",))
    assert bench.choose() == ("onnxruntime", False)
    assert not (tmp_path / "cache").exists()


def test_no_engine_at_all_is_an_engine_error(monkeypatch, specs):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install"):
        open_stage("auto", b"graph", specs["motion"], OPTIONS, {})


def test_a_pipeline_chooses_by_stage_and_keeps_its_choices(bundle_path, monkeypatch, tmp_path):
    if available_engines() != NAMES:
        pytest.skip("an engine is not installed")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        chosen = pipeline.engines
    assert set(chosen) == {"text", "motion", "render"} and set(chosen.values()) <= set(available_engines())
    assert len(list((tmp_path / choice.FOLDER).iterdir())) == 3
    monkeypatch.setattr(choice, "time_engines", None)  # whatever is measured now fails
    with Pipeline.open(bundle_path, threads=1) as pipeline:
        assert pipeline.engines == chosen


def test_the_command_line_takes_an_engine_and_reports_one_for_each_stage(bundle_path, capsys, monkeypatch):
    arguments = ["run", str(bundle_path), "a person is walking", "--seconds", "0.5", "--json", "--engine"]
    for name in available_engines():
        assert main([*arguments, name]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["engines"] == dict.fromkeys(("text", "motion", "render"), name)
        assert name in report["versions"]
    monkeypatch.setattr(engine, "find_spec", lambda module: None)
    assert main([*arguments, "openvino"]) == 1
    assert "pip install 't2v-edge[openvino]'" in capsys.readouterr().err


def test_a_choice_is_remembered_under_every_umask(bench, tmp_path, umask):
    assert bench.choose() == ("openvino", True)
    assert bench.choose() == ("openvino", False)
    (path,) = (tmp_path / "cache" / choice.FOLDER).iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
