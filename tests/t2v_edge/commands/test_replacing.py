"""What `run` and `bench` replace: their own files. A person's file is refused before the bundle is opened."""

from __future__ import annotations

import json
import os
import stat

import cv2
import numpy as np
import pytest

from t2v_edge.cli import main

WALK = "a person is walking"
VIDEOS = ("x.mp4", "x.gif", "frames/%02d.png")


def play(bundle, *arguments):
    return main(["run", str(bundle), WALK, "--seconds", "0.25", *map(str, arguments)])


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def written(target):
    return target.with_name(target.name.replace("%02d", "03"))


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_and_its_sheet_are_replaced_by_the_next(bundle_path, tmp_path, name, umask):
    target, sheet = tmp_path / name, tmp_path / "sheet.png"
    for _ in range(2):
        assert play(bundle_path, "-o", target, "--sheet", sheet) == 0
    for path in (written(target), sheet):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]


@pytest.mark.parametrize("flag, name", [*(("-o", name) for name in VIDEOS), ("--sheet", "sheet.png")])
@pytest.mark.parametrize("data", [b"a person's", "edited", "picture"])
def test_a_persons_file_is_refused_before_any_work(bundle_path, tmp_path, capsys, flag, name, data):
    target = tmp_path / name
    path = written(target)
    path.parent.mkdir(exist_ok=True)
    if data == "edited":
        assert play(bundle_path, flag, target) == 0
        data = path.read_bytes() + b"more"
    if data == "picture":
        data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    path.write_bytes(data)
    before = files_of(tmp_path)
    capsys.readouterr()
    assert play("nowhere", flag, target) == 1
    error = capsys.readouterr().err
    assert f"{path} is left alone: t2v-edge did not write it; give another name" in error
    assert files_of(tmp_path) == before


def test_an_empty_file_is_used_and_frames_of_another_pattern_are_not_asked(bundle_path, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"")
    for name in ("a3.png", "003.png", "+3.png", "03.png.txt", "notes"):
        (tmp_path / name).write_text("a person's")
    assert play(bundle_path, "-o", tmp_path / "x.mp4") == 0
    assert play(bundle_path, "-o", tmp_path / "%02d.png") == 0
    assert (tmp_path / "003.png").read_text() == "a person's"


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "0.png"])
def test_marked_files_are_still_read_by_others(bundle_path, tmp_path, name):
    av = pytest.importorskip("av")
    assert play(bundle_path, "-o", tmp_path / name.replace("0.", "%d.")) == 0
    with av.open(str(tmp_path / name)) as container:
        assert len(list(container.decode(video=0))) == (1 if name == "0.png" else 4)


def test_outputs_do_not_take_each_others_or_the_inputs_place(bundle_path, tmp_path, capsys):
    (tmp_path / "cues.png").write_text("a person's")
    (tmp_path / "link").symlink_to(bundle_path)
    before = files_of(bundle_path)
    for arguments in (
        ["-o", tmp_path / "%02d.png", "--sheet", tmp_path / "03.png"],
        ["-o", tmp_path / "link" / "x.mp4"],
        ["--sheet", bundle_path / "new" / "x.png"],
        ["--sheet", tmp_path / "cues.png", "--captions", tmp_path / "cues.png"],
        ["-o", tmp_path / "cues.png" / "x.mp4"],
    ):
        assert play(bundle_path, *arguments) == 1
        assert "; give" in capsys.readouterr().err
    assert files_of(bundle_path) == before and sorted(os.listdir(tmp_path)) == ["cues.png", "link"]


@pytest.mark.parametrize("live", [[], ["--live"]])
@pytest.mark.parametrize("text", ["notes", "{}", '{"format": "t2v-compare"}'])
def test_a_persons_report_is_refused_before_any_work(tmp_path, capsys, live, text):
    report = tmp_path / "x.json"
    report.write_text(text)
    assert main(["bench", "nowhere", *live, "--report", str(report)]) == 1
    assert f"{report} is left alone: it is not the report; give another name" in capsys.readouterr().err
    assert report.read_text() == text


def test_a_report_is_replaced_by_the_next(bundle_path, tmp_path):
    report = tmp_path / "x.json"
    for _ in range(2):
        assert main(["bench", str(bundle_path), "--seconds", "0.05", "--report", str(report)]) == 0
    assert json.loads(report.read_bytes())["format"] == "t2v-bench" and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("name", ["x.png", "%s.png", "%d%d.png", "a%d/b%d.png", "%99d.png"])
def test_a_pattern_without_a_number_is_an_error_beside_a_sheet_too(bundle_path, tmp_path, capsys, name):
    assert play(bundle_path, "-o", tmp_path / name, "--sheet", tmp_path / "s.png") == 1
    assert "frames/%04d.png" in capsys.readouterr().err and os.listdir(tmp_path) == []
