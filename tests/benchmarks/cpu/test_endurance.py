from __future__ import annotations

import json

import pytest

from benchmarks.common.process import ROOT
from benchmarks.cpu import endurance
from t2v_edge.bench import frames as bench
from t2v_edge.device.profile import load_profile
from t2v_export.exporter.export import ExportOptions, export_checkpoint


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "WARM_S", 0.0)
    monkeypatch.setattr(bench, "FREE_S", 0.01)
    monkeypatch.setattr(bench, "CHANGE_S", 0.1)


def test_a_bundle_is_played_in_the_form_of_the_kept_result(make_checkpoint, tmp_path, capsys):
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", load_profile("cpu"), ExportOptions(measure=False))
    out = tmp_path / "found" / "endurance.json"
    assert endurance.main([str(tmp_path / "bundle"), "--fps", "100", "--seconds", "0.3", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["frames"] == 30 and 0 <= found["late"] <= 30 and found["headroom"] < 1
    kept = json.loads((ROOT / "benchmarks/results/endurance.json").read_text())
    assert found.keys() == kept.keys() and found["frame_ms"].keys() == kept["frame_ms"].keys()
    assert (found["format"], found["format_version"]) == (kept["format"], kept["format_version"])


def test_a_bundle_that_is_not_there_is_told(tmp_path, capsys):
    assert endurance.main([str(tmp_path / "absent")]) == 1
    assert "endurance failed" in capsys.readouterr().err


def test_no_time_is_told(tmp_path, capsys):
    assert endurance.main([str(tmp_path / "absent"), "--seconds", "0"]) == 1
    assert "seconds is 0" in capsys.readouterr().err
