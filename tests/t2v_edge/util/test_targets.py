"""A target is absent, empty or wholly ours. Else it stays as it is, and so does all that lies beside it."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from t2v_edge.errors import SinkError
from t2v_edge.util import files
from t2v_edge.util.files import atomic_file, atomic_folder, write_atomic
from t2v_edge.util.targets import (
    CACHE_FILE,
    CACHE_FOLDER,
    TargetKind,
    check_target,
    check_targets,
    foreign_entry,
    json_target,
)

NAMES = ("mark", "inner/file")


def flaw(folder):
    foreign = foreign_entry(folder, NAMES)
    return None if foreign is None and (folder / "mark").is_file() else f"{foreign} in it is not ours"


FOLDER = TargetKind("the thing", flaw, folder=True)
FILE = json_target("the report", "t2v-test")


def snapshot(folder):
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.is_file() and p.read_bytes()
        for p in sorted(folder.rglob("*"))
    }


def write_folder(target, text="ours", **options):
    with atomic_folder(target, FOLDER, **options) as made:
        for name in NAMES:
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)


def write_report(target, value=1, **options):
    write_atomic(target, json.dumps({"format": "t2v-test", "value": value}).encode(), FILE, **options)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_free_an_empty_and_a_wholly_own_folder_are_taken(tmp_path):
    (tmp_path / "x").mkdir()
    for text in ("first", "second"):
        write_folder(tmp_path / "x", text)
        write_folder(tmp_path / "new" / "y", text)
    assert snapshot(tmp_path / "x") == snapshot(tmp_path / "new" / "y")
    assert (tmp_path / "x" / "inner" / "file").read_text() == "second"
    assert sorted(os.listdir(tmp_path)) == ["new", "x"] and os.listdir(tmp_path / "new") == ["y"]


def add_notes(folder):
    (folder / "notes.txt").write_text("a person's")


def add_inner_file(folder):
    (folder / "inner" / "notes.txt").write_text("a person's")


def add_empty_folder(folder):
    (folder / "notes.txt").mkdir()


def add_link(folder):
    (folder / "notes.txt").symlink_to("/etc/hostname")


def turn_into_link(folder):
    (folder / "mark").rename(folder.parent / "notes.txt")
    (folder / "mark").symlink_to(folder.parent / "notes.txt")


def turn_into_folder(folder):
    (folder / "mark").unlink()
    (folder / "mark").mkdir()
    add_notes(folder / "mark")


@pytest.mark.parametrize(
    "change, named",
    [
        (add_notes, "notes.txt in it"),
        (add_inner_file, "inner/notes.txt in it"),
        (add_empty_folder, "notes.txt in it"),
        (add_link, "notes.txt in it"),
        (turn_into_link, "mark in it"),
        (turn_into_folder, "mark in it"),
    ],
)
@pytest.mark.parametrize("through_link", [False, True])
def test_a_folder_with_anything_else_in_it_is_left_alone_and_the_entry_is_named(tmp_path, change, named, through_link):
    write_folder(tmp_path / "x")
    change(tmp_path / "x")
    target = tmp_path / ("link" if through_link else "x")
    if through_link:
        target.symlink_to("x")
    before = snapshot(tmp_path)
    with pytest.raises(SinkError, match=f"{target.name} is left alone: {named} .*; give another name"):
        write_folder(target)
    assert snapshot(tmp_path) == before


def test_a_link_to_a_free_or_own_folder_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("x")
    for _ in range(2):
        write_folder(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "x" and (tmp_path / "x" / "mark").is_file()


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "sub/.."])
def test_the_working_directory_and_those_above_it_are_left_alone(tmp_path, monkeypatch, target):
    (tmp_path / "work" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    for there in ("empty", "ours", "a person's"):
        if there == "ours":
            (tmp_path / "work" / "sub").rmdir()
            (tmp_path / "work" / "mark").write_text("")
            (tmp_path / "work" / "inner").mkdir()
            target = target.replace("sub", "inner")
        if there == "a person's":
            add_notes(tmp_path / "work")
        before = snapshot(tmp_path)
        with pytest.raises(SinkError, match="the working directory is it or lies in it"):
            write_folder(Path(target))
        assert snapshot(tmp_path) == before


def test_files_and_folders_do_not_take_each_others_place(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SinkError, match="it is a file; give another name"):
        write_folder(tmp_path / "file")
    with pytest.raises(SinkError, match="it is a folder; give another name"):
        write_report(tmp_path / "folder")
    for target in ("file/x", "file/x/y"):
        with pytest.raises(SinkError, match="cannot be written .*file is not a folder"):
            check_target(tmp_path / target, FOLDER)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    "data",
    [
        b"notes",
        b"{}",
        b"[]",
        b'{"format": "mine"}',
        b'{"format": ["t2v-test"]}',
        b"[" * 100_000,
        b"1" * 100_000,
        b"\xff",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_a_file_is_replaced_if_it_is_empty_or_has_our_format(tmp_path, data):
    target = tmp_path / "x.json"
    target.write_bytes(b"")
    write_report(target, 1)
    write_report(target, 2)
    assert json.loads(target.read_bytes())["value"] == 2
    target.write_bytes(data)
    with pytest.raises(SinkError, match="x.json is left alone: it is not the report; give another name"):
        write_report(target)
    assert target.read_bytes() == data and os.listdir(tmp_path) == ["x.json"]


def test_a_device_a_pipe_and_a_circle_of_links_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for target in (tmp_path / "pipe", Path(os.devnull), tmp_path / "circle"):
        with pytest.raises(SinkError, match="; give another"):
            write_report(target)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_outputs_are_neither_inputs_nor_each_other_nor_in_one_another(tmp_path):
    write_folder(tmp_path / "input")
    write_report(tmp_path / "in.json")
    os.symlink("input", tmp_path / "link")
    os.link(tmp_path / "in.json", tmp_path / "hard.json")
    inputs = [None, tmp_path / "input", str(tmp_path / "in.json"), "heldout"]
    for target, kind in (
        ("input", FOLDER),
        ("link", FOLDER),
        ("input/new", FOLDER),
        ("in.json", FILE),
        ("hard.json", FILE),
        ("input/new.json", FILE),
    ):
        with pytest.raises(SinkError, match="is used as well; give another name"):
            check_targets([(tmp_path / target, kind)], inputs)
    for other in ("out", "out/log.json"):
        with pytest.raises(SinkError, match="is used as well"):
            check_targets([(tmp_path / "out", FOLDER), (None, FILE), (tmp_path / other, FILE)])
    check_targets([(tmp_path / "out", FOLDER), (tmp_path / "log.json", FILE), (Path("heldout"), FILE)], inputs)


def test_what_only_looks_like_our_temporaries_stays(tmp_path):
    write_folder(tmp_path / "x")
    (tmp_path / ".x.partial-notes").write_text("a person's")
    (tmp_path / ".x.partial-0123456789ab.txt").write_text("a person's")
    for name in (".x.previous", ".x.previous-notes", ".x.partial-", ".x.partial-mine"):
        (tmp_path / name).mkdir()
        add_notes(tmp_path / name)
    before = snapshot(tmp_path)
    write_folder(tmp_path / "x")
    assert snapshot(tmp_path) == before


def test_an_absent_target_does_not_take_a_persons_previous(tmp_path):
    (tmp_path / ".x.previous").mkdir()
    add_notes(tmp_path / ".x.previous")
    write_folder(tmp_path / "x")
    assert (tmp_path / ".x.previous" / "notes.txt").read_text() == "a person's"


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_came_to_the_target_meanwhile_stays_and_so_does_the_finished_work(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for started in ("absent", "ours"):
        target = tmp_path / started / "x"
        if started == "ours":
            write_folder(target)
        with pytest.raises(SinkError, match=r"notes.txt in it .*; .* The finished work is in .*x-1$"):
            with atomic_folder(target, FOLDER) as made:
                (made / "mark").write_text("hours of work")
                target.mkdir(exist_ok=True)
                add_notes(target)
        assert (target / "notes.txt").read_text() == "a person's"
        assert (target.parent / "x-1" / "mark").read_text() == "hours of work"
        assert sorted(os.listdir(target.parent)) == ["x", "x-1"]


def test_late_work_is_kept_under_the_next_free_name(tmp_path):
    (tmp_path / "x.json").write_text("a person's")
    (tmp_path / "x-1.json").write_text("a person's")
    with pytest.raises(SinkError, match="x-2.json"):
        write_report(tmp_path / "x.json", late=True)
    assert json.loads((tmp_path / "x-2.json").read_bytes())["value"] == 1
    assert (tmp_path / "x.json").read_text() == (tmp_path / "x-1.json").read_text() == "a person's"
    assert len(os.listdir(tmp_path)) == 3


# -- modes ------------------------------------------------------------------------------------------------------

modes = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX systems")


@modes
def test_outputs_get_the_mode_of_the_umask_and_temporaries_are_closed_to_others(tmp_path, umask):
    with atomic_file(tmp_path / "x.json", FILE) as temporary:
        assert mode_of(temporary) == 0o600
        temporary.write_text("{}")
    with atomic_folder(tmp_path / "x", FOLDER) as made:
        assert mode_of(made) == 0o700
        (made / "mark").write_text("")
    assert mode_of(tmp_path / "x.json") == mode_of(tmp_path / "x" / "mark") == 0o666 & ~umask
    assert mode_of(tmp_path / "x") == 0o777 & ~umask
    assert sorted(os.listdir(tmp_path)) == ["x", "x.json"]


@modes
def test_what_replaces_keeps_the_mode(tmp_path, umask):
    write_folder(tmp_path / "x")
    write_report(tmp_path / "x.json")
    (tmp_path / "x").chmod(0o750)
    (tmp_path / "x.json").chmod(0o640)
    write_folder(tmp_path / "x")
    write_report(tmp_path / "x.json")
    assert (mode_of(tmp_path / "x"), mode_of(tmp_path / "x.json")) == (0o750, 0o640)


@modes
def test_a_cache_is_its_users_alone(tmp_path, umask):
    (tmp_path / "entry").write_text("of an older version, which the group may write")
    (tmp_path / "entry").chmod(0o664)
    write_atomic(tmp_path / "entry", b"new", CACHE_FILE)
    with atomic_folder(tmp_path / "pass", CACHE_FOLDER) as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("")
    assert mode_of(tmp_path / "entry") == mode_of(tmp_path / "pass" / "inner" / "file") == 0o600
    assert mode_of(tmp_path / "pass") == mode_of(tmp_path / "pass" / "inner") == 0o700
