"""Caption sets: the shipped ones, files of one's own, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import t2v_calibration.captions as module
from t2v_calibration.captions import load_captions, shipped_sets
from t2v_edge.errors import CaptionError

SETS = Path(__file__).parents[2] / "calibration" / "captions"


@pytest.mark.parametrize("name, count", [("en", 256), ("zh", 256), ("corpus", 8000), ("heldout", 1200)])
def test_shipped_sets_load_by_name_and_by_path_alike(name, count):
    captions = load_captions(name)
    assert len(captions) == len(set(captions)) == count
    suffix = ".jsonl" if name == "heldout" else ".txt"
    assert load_captions(SETS / (name + suffix)) == captions
    assert any("篮球" in caption for caption in captions) == (name != "en")


def test_calibration_captions_are_none_of_those_that_judge():
    judging = {caption.casefold() for caption in load_captions("heldout")}
    assert not judging & {caption.casefold() for name in ("en", "zh", "corpus") for caption in load_captions(name)}


def test_sets_are_found_in_an_installed_package(tmp_path, monkeypatch):
    shutil.copytree(SETS, tmp_path / "t2v_calibration" / "captions")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "t2v_calibration" / "captions.py"))
    assert shipped_sets() == ("corpus", "en", "heldout", "zh")
    assert len(load_captions("en")) == 256


def test_blank_lines_comments_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# mine\r\n\r\n  a man is running \r\n跑步\r\n".encode())
    assert load_captions(path) == ("a man is running", "跑步")


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("empty.txt", b"\n# nothing\n", "holds no captions; write one"),
        ("bytes.txt", b"run\xff", "not UTF-8"),
        ("nul.txt", b"a\x00b\n", "line 1: the caption is empty or holds a NUL"),
        ("long.txt", b"ok\n" + b"x" * 2001, "line 2: 2001 characters"),
        ("many.txt", b"a\n" * 20_001, "more than 20000 captions"),
        ("large.txt", b"#" * ((4 << 20) + 1), "larger than"),
        ("bad.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: expected JSON"),
        ("list.jsonl", b"[1]\n", "line 1: expected JSON"),
        ("number.jsonl", b'{"text": 3}\n', "line 1: expected JSON"),
        ("deep.jsonl", b"[" * 100_000, "line 1: expected JSON"),
        ("blank.jsonl", b'{"text": " "}\n', "line 1: the caption is empty"),
    ],
)
def test_a_bad_file_is_refused_with_its_place_and_remedy(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaptionError, match=problem):
        load_captions(tmp_path / name)


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(CaptionError, match="'fr': shipped are corpus, en, heldout, zh"):
        load_captions("fr")
    with pytest.raises(CaptionError, match="no caption set"):
        load_captions("../captions/en")
    with pytest.raises(CaptionError, match="no caption file"):
        load_captions("absent.txt")
