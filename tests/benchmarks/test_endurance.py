from __future__ import annotations

import json

import pytest

from benchmarks import endurance
from benchmarks.endurance import Clockwork, keep_pace
from t2v_edge.device import load_profile
from t2v_export.export import ExportOptions, export_checkpoint


class FakeTime:
    """A clock that goes forward by what frames take and by what is slept."""

    def __init__(self, takes):
        self.now, self.takes = 100.0, iter(takes)
        self.clock = Clockwork(now=lambda: self.now, cpu=lambda: self.now / 2, sleep=self.sleep)

    def sleep(self, seconds):
        self.now += seconds

    def __next__(self):
        self.now += next(self.takes)


def test_frames_on_time_leave_the_rest_as_headroom():
    time = FakeTime([0.025] * 40)
    found = keep_pace(time, 10, 40, time.clock)
    assert found["late"] == 0 and found["latest_ms"] == 0
    assert found["headroom"] == pytest.approx(0.75)
    assert found["frame_ms"]["p50"] == pytest.approx(25) == found["frame_ms"]["max"]


def test_a_slow_frame_is_late_and_so_are_those_it_holds_up():
    # due at 0.1, 0.2, ...: the third ends 0.25 s after its start at 0.2, the fourth at 0.5 for 0.4, the fifth on time
    time = FakeTime([0.05, 0.05, 0.25, 0.05, 0.0, 0.05])
    found = keep_pace(time, 10, 6, time.clock)
    assert found["late"] == 2
    assert found["latest_ms"] == pytest.approx(150)
    assert found["frame_ms"]["max"] == pytest.approx(250)


def test_a_stream_that_cannot_keep_up_has_no_headroom():
    time = FakeTime([0.2] * 10)
    found = keep_pace(time, 10, 10, time.clock)
    assert found["late"] == 10 and found["headroom"] == pytest.approx(0)


def test_a_bundle_is_played_and_its_caption_changes(make_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(endurance, "CHANGE_S", 0.1)
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", load_profile("cpu"), ExportOptions(measure=False))
    out = tmp_path / "found" / "endurance.json"
    assert endurance.main([str(tmp_path / "bundle"), "--fps", "100", "--seconds", "0.3", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["frames"] == 30 and found["stages"]["text"]["count"] == 3
    assert 0 <= found["late"] <= 30 and found["headroom"] < 1 and set(found["engines"]) == {"text", "motion", "render"}


def test_a_bundle_that_is_not_there_is_told(tmp_path, capsys):
    assert endurance.main([str(tmp_path / "absent")]) == 1
    assert "endurance failed" in capsys.readouterr().err
