from __future__ import annotations

import math

import pytest

from benchmarks.common.methods import METHODS, OURS, method
from benchmarks.common.results import STUDENT, TEACHER, demands, describe, skipped, table

CEILINGS = {"fp32": {"best": 100.0, "by": "a", "all": {"a": 100.0}}, "int8": {"best": 400.0, "by": "b", "all": {}}}


def rounds_of(fps: float):
    return [
        {
            "base_fps": fps * k,
            "shown_fps": fps * k,
            "render_ms": 2.0,
            "first_frame_ms": 9.0,
            "cold_start_ms": 90.0,
            "peak_mib": 200.0,
        }
        for k in (1.0, 1.1, 0.2)
    ]


def contender(model: str, name: str, fps: float, variants=None):
    first = {"engines": {}, "variants": variants, "psnr_db": 50.0, "cold_start_ms": 100.0}
    return describe(model, method(name), first, rounds_of(fps), 80_000_000, CEILINGS)


def contenders(eager=10.0, teacher_peer=50.0, student_peer=140.0, ours=150.0):
    return [
        contender(TEACHER, "torch-eager", eager),
        contender(TEACHER, "openvino-int8", teacher_peer),
        contender(TEACHER, OURS, 1000.0),
        contender(STUDENT, "openvino-int8", student_peer),
        contender(STUDENT, "torch-eager", 20.0),
        contender(STUDENT, OURS, ours),
    ]


def kept(**rates) -> list[bool]:
    return [demand.kept for demand in demands(contenders(**rates))]


def test_each_demand_is_kept_at_its_ratio_and_missed_below_it():
    assert kept() == [True] * 6
    assert kept(eager=10.1) == [False, True, True] * 2
    assert kept(teacher_peer=50.1) == [True, False, True] * 2
    assert kept(student_peer=150 / 0.97 + 0.1) == [True, True, False] * 2
    # ours on the teacher is no peer, and a difference within the noise is no difference
    assert kept(student_peer=154.0) == [True] * 6


def test_both_frame_rates_count():
    found = contenders()
    found[-1]["figures"]["shown_fps"]["median"] = 149.0
    assert [demand.kept for demand in demands(found)] == [True] * 3 + [False, False, True]


def test_what_was_not_measured_is_not_kept():
    found = [c for c in contenders() if c["model"] == TEACHER]
    assert not any(demand.kept for demand in demands(found))
    assert {demand.to_json()["found"] for demand in demands(found)} == {None}
    assert all(math.isnan(demand.found) for demand in demands([skipped(STUDENT, method(OURS), "no engine")]))


def test_figures_are_medians_of_rounds_with_their_spread():
    made = contender(TEACHER, "ort-fp32", 10.0)
    assert made["figures"]["shown_fps"] == {
        "median": 10.0,
        "min": 2.0,
        "max": pytest.approx(11.0),
        "rounds": [10.0, pytest.approx(11.0), 2.0],
    }


def test_a_share_of_the_ceiling_is_of_the_renderers_own_precision():
    # 80 MMAC in 2 ms are 80 G operations a second
    assert contender(TEACHER, "ort-fp32", 1.0)["share_of_ceiling"] == pytest.approx(0.8)
    assert contender(TEACHER, "openvino-int8", 1.0)["share_of_ceiling"] == pytest.approx(0.2)
    assert contender(STUDENT, OURS, 1.0, {"render": "int8-u8"})["share_of_ceiling"] == pytest.approx(0.2)
    ours = contender(STUDENT, OURS, 1.0, {"render": "fp32"})
    assert ours["share_of_ceiling"] == pytest.approx(0.8) and ours["precision"] == "fp32"


def test_the_table_has_a_line_for_every_contender():
    found = [*contenders(), skipped(TEACHER, method("torch-compile"), "no compiler")]
    results = {"ceilings": CEILINGS, "contenders": found, "demands": [d.to_json() for d in demands(found)]}
    lines = table(results).splitlines()
    assert sum(line.startswith((TEACHER, STUDENT)) for line in lines) == len(found)
    assert any("skipped: no compiler" in line for line in lines)
    assert sum(line.startswith("kept") for line in lines) == 6


def test_every_peer_of_the_issue_is_a_method():
    assert len({how.name for how in METHODS}) == len(METHODS)
    assert {how.runner for how in METHODS} == {"torch", "torch-compile", "onnxruntime", "openvino", OURS}
    assert {how.graphs for how in METHODS} == {"", "plain", "ort-static", "nncf-onnx", "nncf-openvino"}
