"""The table of a GPU's measurements: hand-made figures, and what was measured."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from benchmarks.gpu.summary import demands, engine_rows, main, peer_rows, sameness

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
GPU = {"name": "A GPU"}
TRIED = [{"variant": "fp32", "median_ms": 0.4}, {"variant": "fp16", "median_ms": 0.2}]
BUILT = {"gpu": GPU, "stages": {"render": {"variant": "fp16", "tried": TRIED}}}
ENGINES = {
    "versions": {},
    "bundles": {
        "m": {
            "build 1": BUILT,
            "build fp32": BUILT,
            "stream 1": {"fps": 1500.0, "gpu_idle_share": 0.5},
            "stream 1 ahead": {"fps": 2400.0, "gpu_idle_share": 0.2},
            "stream fp32": {"fps": 1200.0, "gpu_idle_share": 0.1, "variants": {"render": "fp32"}},
            "stream fp16": {
                "fps": 1300.0,
                "gpu_idle_share": 0.1,
                "variants": {"render": "fp32"},
            },  # refused: another plays
            "same 1": {"frames": 400, "counts_agree": True, "not_the_same": 0, "levels": 0},
            "captions": {"first_frame_ms": {"p50": 2.0}},
        }
    },
}


def peer(method, fps):
    return {
        "model": "m",
        "method": method,
        "precision": "fp16",
        "status": "measured",
        "streams": {"1": {"fps": fps, "idle_share": 0.9}},
        "stages": {"render": {"gpu_ms": {"median": 5.0}}},
        "first_frame_ms": {"median": 9.0},
    }


PEERS = {
    "versions": {},
    "gpu": GPU,
    "models": {"m": {"width": 100, "height": 100, "render_gmac": 1.0}},
    "ceilings": {"matrix": {"fp16": {"best": 100.0}, "fp32": {"best": 50.0}}, "pinned_gb_s": 10.0},
    "contenders": [
        peer("torch-eager-fp16", 200.0),
        peer("torch-graph-fp16", 1000.0),
        {"model": "m", "method": "ort-fp16", "status": "skipped", "reason": "not installed"},
    ],
}


def test_rates_and_shares_are_those_of_the_faster_stream():
    ours, fp32 = engine_rows(ENGINES, PEERS)
    assert (ours.method, ours.precision, ours.fps, ours.render_ms) == ("t2v-edge", "fp16", 2400.0, 0.2)
    # 2 GOP in 0.2 ms are 10 TOPS of 100; 2400 frames of 30,000 bytes are 0.072 of 10 GB/s
    assert ours.matrix_share == pytest.approx(0.1) and ours.copy_share == pytest.approx(0.0072)
    assert (fp32.method, fp32.matrix_share) == ("t2v-edge fp32", pytest.approx(0.1))
    assert [row.method for row in peer_rows(PEERS)] == ["torch-eager-fp16", "torch-graph-fp16"]


def test_demands_are_kept_missed_or_not_measured():
    rows = [*engine_rows(ENGINES, PEERS), *peer_rows(PEERS)]
    assert [(d.found, d.kept) for d in demands(rows)] == [(12.0, True), (2.4, True), (2.5, True)]
    slower = [row for row in rows if row.method != "torch-graph-fp16"]
    missed = demands(slower)[1]
    assert math.isnan(missed.found) and not missed.kept


@pytest.mark.parametrize("changed, kept", [({}, True), ({"not_the_same": 1}, False), ({"counts_agree": False}, False)])
def test_frames_made_ahead_are_to_be_those_made_one_by_one(changed, kept):
    engines = copy.deepcopy(ENGINES)
    engines["bundles"]["m"]["same 1"].update(changed)
    assert [demand.kept for demand in sameness(engines)] == [kept]
    assert not sameness({"bundles": {"m": {}}})[0].kept


def test_the_command_writes_and_checks(tmp_path, capsys):
    paths = [tmp_path / "engines.json", tmp_path / "peers.json"]
    paths[0].write_text(json.dumps(ENGINES))
    paths[1].write_text(json.dumps(PEERS))
    assert main([*map(str, paths), "--check", "-o", str(tmp_path / "gpu.json")]) == 0
    assert "| m | **t2v-edge**, fp16 renderer chosen | 2,400 | 0.200 | 2.00 | 20% | 10.0% |" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu.json").read_text())["demands"][0]["kept"]
    slow = copy.deepcopy(ENGINES)
    slow["bundles"]["m"]["stream 1 ahead"]["fps"] = 1900.0
    paths[0].write_text(json.dumps(slow))
    assert main([*map(str, paths), "--check"]) == 3
    slow["bundles"]["m"]["build 1"]["gpu"] = {"name": "Another"}
    paths[0].write_text(json.dumps(slow))
    assert main([*map(str, paths)]) == 2 and "measure both on one GPU" in capsys.readouterr().err


def test_what_was_measured_is_read():
    found = [json.loads((RESULTS / f"gpu_{name}.json").read_text()) for name in ("engines", "peers")]
    rows = engine_rows(*found)
    assert rows and all(row.fps > 0 and 0 < row.matrix_share < 1 and 0 < row.copy_share < 1 for row in rows)
