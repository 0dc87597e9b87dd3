"""The kept comparison of estimates and measurements, reckoned anew with the constants of today."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.results import STUDENT, TEACHER
from benchmarks.roofline import CPU, RESULTS, checks_of, measured_by_peers
from t2v_edge.bundle import Bundle
from t2v_edge.device import load_profile
from t2v_edge.manifest import GraphEntry
from t2v_edge.roofline import check_against
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
    assert check.ratio == pytest.approx(row["ratio"]), "the constants changed: run benchmarks.roofline again"


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
    tiny.variants["fp32"]["render"] = replace(tiny.variants["fp32"]["render"], macs=10**9, weight_bytes=0,
                                              activation_bytes=0, launches=0)
    with Bundle.open(tiny.write(tmp_path / "bundle")) as bundle:
        (row,) = checks_of(CPU, "tiny", bundle.manifest, {"fp32": {"render": 1.0}}, "x.json")
        with pytest.raises(ValueError, match="fp32/text was measured and has no estimate"):
            checks_of(CPU, "tiny", bundle.manifest, {"fp32": {"text": 1.0}}, "x.json")
    assert row["costs"]["macs"] == 10**9 and row["ratio"] == row["estimated_ms"] == pytest.approx(2 / (0.6 * 0.193))
