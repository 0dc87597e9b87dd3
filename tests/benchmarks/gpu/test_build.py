from __future__ import annotations

import importlib
import json
from concurrent.futures import Future

import pytest

from tests.t2v_edge.engine.tensorrt.test_build import make_bundle
from tests.t2v_edge.fake_gpu import FakeCuda, install


class Here:
    """A pool of processes whose work is done at once, in this one."""

    def __init__(self, processes, context, initializer, arguments):
        self.jobs = Here.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        self.jobs.append(arguments[0].key)
        made = Future()
        made.set_result(function(*arguments))
        return made


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("T2V_EDGE_CACHE", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def tools(monkeypatch):
    """TensorRT's stand-in, which refuses the third text stage, and both programs, imported over it."""
    tensorrt = install(monkeypatch, FakeCuda(), "8.6.2")
    texts = []

    def spoil(graph):
        texts.extend([graph] if b"input_ids" in graph else [])
        return None if len(texts) >= 3 and graph is texts[-1] else graph

    tensorrt.spoil = spoil
    for name in ("gpu.build", "gpu.engines"):
        monkeypatch.delitem(importlib.sys.modules, f"benchmarks.{name}", raising=False)
    build = importlib.import_module("benchmarks.gpu.build")
    monkeypatch.setattr(build, "ProcessPoolExecutor", Here)
    return tensorrt, build, importlib.import_module("benchmarks.gpu.engines")


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    assert program.main() == 0


def test_engines_are_built_once_renderers_first_and_refusals_are_kept(bundle, tools, tmp_path, monkeypatch):
    tensorrt, gpu_build, _ = tools
    output = tmp_path / "builds.json"
    run(monkeypatch, gpu_build, bundle, "-o", output)
    found = json.loads(output.read_text())
    assert Here.jobs == [f"tiny {v} {s}" for v in ("fp16", "fp32", "int8") for s in ("render", "motion", "text")]
    assert "cannot build" in found["tiny int8 text"]["refused"] and found["tiny int8 text"]["bytes"] == 0
    assert all(made["bytes"] > 0 and not made["refused"] for key, made in found.items() if key != "tiny int8 text")
    run(monkeypatch, gpu_build, bundle, "-o", output)
    assert json.loads(output.read_text()) == found and len(tensorrt.builds) == 9


def test_measuring_takes_what_was_built_and_builds_nothing_again(bundle, tools, tmp_path, monkeypatch):
    tensorrt, gpu_build, gpu_engines = tools
    builds, output = tmp_path / "builds.json", tmp_path / "engines.json"
    run(monkeypatch, gpu_build, bundle, "-o", builds)
    monkeypatch.setattr(gpu_engines, "WARM_FRAMES", 4)
    monkeypatch.setattr(gpu_engines, "FIRST_FRAMES", 3)
    run(monkeypatch, gpu_engines, bundle, "--builds", builds, "--batches", "1", "--count", "8", "-o", output)
    assert len(tensorrt.builds) == 10  # the motion engine that was damaged on purpose
    parts, seconds = json.loads(output.read_text())["bundles"]["tiny"], json.loads(builds.read_text())
    assert not [name for name, part in parts.items() if "failed" in part], parts
    tried = {(stage, t["variant"]): t for stage, result in parts["build 1"]["stages"].items() for t in result["tried"]}
    assert len(tried) == 9 and "cannot build" in tried["text", "int8"]["refused"]
    assert tried["render", "fp16"]["build_s"] == seconds["tiny fp16 render"]["seconds"] > 0
    assert parts["stream 1 ahead"]["fps"] > 0 and parts["stream int8"]["variants"]["render"] == "int8"
    cache = parts["cache"]
    assert [name for name, taken in cache["taken"].items() if taken] == ["whole"] and len(cache["taken"]) == 13
    assert cache["built_again"] and cache["right_again"] and cache["others_kept"]
