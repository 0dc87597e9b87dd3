"""The kept comparison of estimates and measurements, reckoned anew with the constants of today."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.common.results import STUDENT, TEACHER
from benchmarks.common.roofline import (
    CPU,
    RESULTS,
    checks_of,
    constants,
    measured_by_peers,
    measured_in,
    profile_of,
    whole_by_peers,
    whole_checks,
    whole_on_gpu,
)
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.manifest import GraphEntry
from t2v_edge.device.profile import load_profile
from t2v_edge.device.roofline import check_against
from tests.t2v_edge.conftest import make_tiny

KEPT = json.loads((RESULTS / "roofline.json").read_text("utf-8"))
WITHIN = 2.0  # what the estimate promises


def named(row) -> str:
    return "-".join(row[key] for key in ("device", "model", "stage", "variant"))


@pytest.mark.parametrize("row", KEPT["checks"], ids=named)
def test_estimate_is_within_a_factor_of_two_of_each_kept_measurement(row):
    entry = GraphEntry(f"{row['variant']}/{row['stage']}.onnx", row["variant"], 17, (), **row["costs"])
    graphs = {row["variant"]: {row["stage"]: entry}}
    (check,) = check_against(load_profile(row["device"]), graphs, {row["variant"]: {row["stage"]: row["measured_ms"]}})
    assert check.factor <= WITHIN
    assert check.ratio == pytest.approx(row["ratio"]), "the constants changed: run benchmarks.common.roofline again"


@pytest.mark.parametrize("row", KEPT["whole"], ids=lambda row: "-".join((row["device"], row["model"], row["figure"])))
def test_frames_a_second_and_the_first_frame_are_within_a_factor_of_two(row):
    assert 1 / WITHIN <= row["ratio"] <= WITHIN
    assert row["ratio"] == pytest.approx(row["estimated"] / row["measured"])
    assert KEPT["constants"] == constants(), "the constants changed: run benchmarks.common.roofline again"


def test_whole_frames_are_those_of_the_files_they_are_said_to_be_of():
    files = {name: json.loads((RESULTS / name).read_text("utf-8")) for name in ("peers.json", "gpu_engines.json")}
    of = {"peers.json": whole_by_peers, "gpu_engines.json": whole_on_gpu}
    rows = KEPT["whole"]
    assert len(rows) == 8 and {row["measured_in"] for row in rows} == set(files)
    for row in rows:
        assert row["measured"] == of[row["measured_in"]](files[row["measured_in"]], row["model"])[row["figure"]]


def test_a_bundle_is_estimated_as_a_whole(tmp_path):
    tiny = make_tiny()
    for stage in tiny.variants["fp32"]:
        tiny.variants["fp32"][stage] = replace(
            tiny.variants["fp32"][stage], macs=0, weight_bytes=0, activation_bytes=0, launches=100
        )
    with Bundle.open(tiny.write(tmp_path / "bundle")) as bundle:
        fps, first = whole_checks(CPU, "tiny", bundle.manifest, {"fps": 100.0, "first_frame_ms": 2.0}, "x.json")
    # three stages of 1.2 ms, 0.15 ms of the runtime and 1 ms for a caption
    assert fps["ratio"] == pytest.approx(1000 / 2.55 / 100) and first["ratio"] == pytest.approx(4.75 / 2)


def test_kept_measurements_are_those_of_the_file_they_name():
    peers = json.loads((RESULTS / "peers.json").read_text("utf-8"))
    rows = [row for row in KEPT["checks"] if row["measured_in"] == "peers.json"]
    assert len(rows) == 6
    for model in (TEACHER, STUDENT):
        measured = measured_by_peers(peers, model)
        for row in (r for r in rows if r["model"] == model):
            assert row["measured_ms"] == measured[row["variant"]][row["stage"]]


def test_a_bundle_is_checked_with_the_costs_that_its_manifest_names(tmp_path):
    tiny = make_tiny()
    tiny.variants["fp32"]["render"] = replace(
        tiny.variants["fp32"]["render"], macs=10**9, weight_bytes=0, activation_bytes=0, launches=0
    )
    with Bundle.open(tiny.write(tmp_path / "bundle")) as bundle:
        (row,) = checks_of(CPU, "tiny", bundle.manifest, {"fp32": {"render": 1.0}}, "x.json")
        with pytest.raises(ValueError, match="fp32/text was measured and has no estimate"):
            checks_of(CPU, "tiny", bundle.manifest, {"fp32": {"text": 1.0}}, "x.json")
    assert row["costs"]["macs"] == 10**9 and row["ratio"] == row["estimated_ms"] == pytest.approx(2 / (0.6 * 0.193))


@pytest.mark.parametrize(
    "results",
    [
        {"small": {"render": {"fp16": {"median_ms": 0.5, "p95_ms": 1.0}}}},
        {"stages": {"tensorrt": {"fp16": {"small": {"render": {"median_ms": 0.5}}}}}},
        {"rows": [{"bundle": "small", "stage": "render", "precision": "fp16", "median_ms": 0.5}]},
    ],
)
def test_medians_are_found_by_bundle_stage_and_variant_however_they_are_nested(results):
    assert measured_in(results, "small") == {"fp16": {"render": 0.5}}
    with pytest.raises(ValueError, match="no median_ms of reference"):
        measured_in(results, "reference")


def test_medians_of_other_engines_are_passed_over():
    times = {"tensorrt": 0.5, "onnxruntime": 3.0}
    both = {"small": {engine: {"render": {"fp16": {"median_ms": ms}}} for engine, ms in times.items()}}
    assert measured_in(both, "small") == {"fp16": {"render": 0.5}}
    assert measured_in(both, "small", "onnxruntime") == {"fp16": {"render": 3.0}}


def test_a_gpu_is_known_by_its_name_and_one_without_a_profile_is_refused():
    assert profile_of({"gpu": {"name": "NVIDIA H200"}}) == "h200"
    assert profile_of({"gpu": "NVIDIA H100 80GB HBM3"}) == "h100"
    with pytest.raises(ValueError, match="no profile is known for the GPU 'NVIDIA L4'"):
        profile_of({"gpu": {"name": "NVIDIA L4"}})
