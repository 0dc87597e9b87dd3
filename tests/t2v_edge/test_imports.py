"""The runtime stays light: it imports and runs without the toolchain."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

import t2v_edge

ROOT = Path(t2v_edge.__file__).parent

PLAY = """
    import importlib, importlib.util, pkgutil, sys

    import t2v_edge

    before = set(sys.modules)
    skipped = 0
    needs = {"engine.openvino": "openvino", "engine.tensorrt.cuda": "cuda", "engine.tensorrt.loaded": "cuda",
             "engine.tensorrt.player": "cuda", "engine.tensorrt.engine": "cuda", "engine.tensorrt.build": "cuda",
             "server.session": "websockets",
             "server.server": "websockets", "remote.async_client": "websockets", "remote.client": "websockets",
             "client": "websockets", "bench.live.run": "websockets", "bench.live.client": "websockets",
             "bench.live.hostile": "websockets", "bench.live.report": "websockets"}
    for module in pkgutil.walk_packages(t2v_edge.__path__, "t2v_edge."):
        needed = needs.get(module.name[len("t2v_edge."):])
        if needed and importlib.util.find_spec(needed) is None:
            skipped += 1
            continue
        importlib.import_module(module.name)
    with t2v_edge.Pipeline.open(sys.argv[1], threads=1) as pipeline:
        captions = "a person is walking", [(0.5, "a person is running")]
        stream = pipeline.stream(captions[0], then=captions[1], fps=30, seconds=1, size=(32, 32))
        assert sum(1 for _ in stream) == 30
    heavy = {"torch", "transformers", "nncf", "onnx", "onnxscript", "t2v_export", "t2v_calibration"}
    found = heavy & {name.split(".")[0] for name in sys.modules}
    assert not found, found
    print(skipped + sum(name.startswith("t2v_edge.") for name in sys.modules))
"""


def run_fresh(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_importing_everything_and_playing_a_stream_never_imports_torch(bundle_path):
    done = run_fresh(PLAY, bundle_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(list(ROOT.rglob("*.py"))) - 1


def test_importing_the_package_imports_neither_opencv_nor_pyav_nor_an_engine():
    done = run_fresh("""
        import sys
        import t2v_edge, t2v_edge.cli
        print(sorted({"cv2", "av", "onnxruntime", "openvino"} & set(sys.modules)))
    """)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_neither_reports_its_use_nor_writes_into_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where these are set, OpenVINO holds back by itself
        monkeypatch.delenv(name, raising=False)
    done = run_fresh("""
        import sys
        import t2v_edge.engine.openvino
        print("openvino" in sys.modules, [name for name in sys.modules if name.startswith("openvino_telemetry")])
    """)
    assert done.stdout.strip() == "True []", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_library_code_neither_prints_nor_exits():
    for path in ROOT.rglob("*.py"):
        if path.name in ("cli.py", "__main__.py") or path.parent.name == "commands":
            continue
        text = path.read_text(encoding="utf-8")
        for word in ("print(", "sys.exit", "os._exit"):
            assert word not in text, f"{path.name} has {word}"
