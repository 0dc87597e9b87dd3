"""Bundles appear whole: what a killed, failed or repeated export leaves."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

import t2v_edge
from t2v_edge.bundle.bundle import Bundle, write_bundle
from t2v_edge.errors import BundleError
from t2v_edge.util import files


def tree(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(code: str, *arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(t2v_edge.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_bundle_is_replaced_and_nothing_else_is_left(tiny, tmp_path, name):
    path = tiny.write(tmp_path / name)
    tiny.files["README.md"] = b"# new\n"
    tiny.write(path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with Bundle.open(path) as bundle:
        assert bundle.read("README.md") == b"# new\n"


def test_what_is_no_bundle_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "notes.zip").write_bytes(b"not a zip")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "notes.zip", "file"):
        with pytest.raises(BundleError, match="give another name"):
            tiny.write(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert (tmp_path / "notes.zip").read_bytes() == b"not a zip"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "notes.zip", "thesis"]


def test_an_empty_folder_is_taken_and_a_file_not_given_is_named(tiny, tmp_path):
    (tmp_path / "b").mkdir()
    Bundle.open(tiny.write(tmp_path / "b")).close()
    del tiny.files["fp16/text.onnx"]
    with pytest.raises(BundleError, match="fp16/text.onnx, which is not among its files"):
        write_bundle(tmp_path / "c", tiny.manifest, tiny.files)


def test_a_full_disk_leaves_the_previous_bundle_whole(tiny, tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "b")
    before = tree(path)
    tiny.files["README.md"] = b"# new\n"

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left"):
        tiny.write(path)
    monkeypatch.undo()
    assert tree(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


KILLED_WRITER = """
    import pathlib, sys, time
    import t2v_edge.util.files
    from t2v_edge.bundle.bundle import Bundle, write_bundle

    path, stop_after = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    with Bundle.open(path) as opened:
        manifest, files = opened.manifest, {name: opened.read(name) for name in opened.manifest.files}
    files["README.md"] = b"# half of this must never be seen\\n"
    done = 0

    def stopping(real):
        def step(*arguments):
            global done
            done += 1
            if done > stop_after:
                print("here", flush=True)
                time.sleep(60)
            return real(*arguments)
        return step

    pathlib.Path.write_bytes = stopping(pathlib.Path.write_bytes)
    t2v_edge.util.files._swap = stopping(t2v_edge.util.files._swap)
    write_bundle(path, manifest, files)
"""


@pytest.mark.parametrize("stop_after", [0, 3, 10])
def test_a_writer_killed_at_any_moment_leaves_the_previous_bundle_whole(tiny, tmp_path, stop_after):
    path = tiny.write(tmp_path / "b")
    before = tree(path)
    writer = start(KILLED_WRITER, path, stop_after)
    assert writer.stdout.readline() == b"here\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert tree(path) == before
    assert len(list(tmp_path.iterdir())) == 2, "the killed writer's temporary should still lie there"
    tiny.write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["b"], "the next writer should have removed it"


def test_a_reader_never_sees_half_a_bundle_while_it_is_replaced(tiny, tmp_path):
    path = tiny.write(tmp_path / "b")
    code = """
        import sys
        from t2v_edge.bundle.bundle import Bundle, write_bundle
        with Bundle.open(sys.argv[1]) as opened:
            manifest, files = opened.manifest, {n: opened.read(n) for n in opened.manifest.files}
        print("go", flush=True)
        while True:
            write_bundle(sys.argv[1], manifest, files)
    """
    writer = start(code, path)
    try:
        assert writer.stdout.readline() == b"go\n"
        end = time.monotonic() + 1.0
        looks = 0
        while time.monotonic() < end:
            assert (path / "manifest.json").exists()
            looks += 1
        assert looks > 100
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_two_renames_serve_where_names_cannot_be_exchanged(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path = tiny.write(tmp_path / "b")
    tiny.files["README.md"] = b"# new\n"
    tiny.write(path)
    assert (path / "README.md").read_bytes() == b"# new\n"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    os.rename(path, tmp_path / ".b.previous-0123456789ab")  # as a run killed between the two renames leaves it
    files.remove_stale(path)
    Bundle.open(path).close()


# -- a person's files stay --------------------------------------------------------------------------------------


def zip_of(path: Path, files: dict, comment: bytes = b"", before: bytes = b"", time=(1980, 1, 1, 0, 0, 0)) -> None:
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, time), data)
        archive.comment = comment


@pytest.mark.parametrize("name", ["notes.txt", "fp16/notes.txt", "my notes.txt", ".notes", "photos/"])
def test_a_persons_file_in_a_bundle_is_named_and_nothing_is_written(tiny, tmp_path, name):
    path = tiny.write(tmp_path / "b")
    (path / name).mkdir() if name.endswith("/") else (path / name).write_text("a person's")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=f"{re.escape(name.rstrip('/'))} in it .*; give another name"):
        tiny.write(path)
    assert tree(tmp_path) == before and (path / name).exists() and os.listdir(tmp_path) == ["b"]


def test_a_folder_with_another_manifest_is_no_bundle(tiny, tmp_path):
    for number, text in enumerate(['{"format": "t2v-bundle"}', '{"name": "my extension"}', "x"]):
        (tmp_path / f"b{number}").mkdir()
        (tmp_path / f"b{number}" / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match="it is not a bundle"):
            tiny.write(tmp_path / f"b{number}")
        assert (tmp_path / f"b{number}" / "manifest.json").read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"notes.txt": b"a person's"}},
        {"files": {"photos/": b""}},
        {"comment": b"a person's"},
        {"before": b"#!/bin/sh\n"},
        {"time": (2020, 1, 1, 0, 0, 0)},
    ],
    ids=str,
)
def test_a_zip_that_an_export_did_not_write_stays(tiny, tmp_path, change):
    files = tree(tiny.write(tmp_path / "b"))
    ours = ["manifest.json", *sorted(set(files) - {"manifest.json"})]
    files = {name: files[name] for name in ours}
    zip_of(tmp_path / "ours.zip", files)
    tiny.write(tmp_path / "ours.zip")
    zip_of(tmp_path / "b.zip", {**files, **change.pop("files", {})}, **change)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"b\.zip is left alone: .*; give another name"):
        tiny.write(tmp_path / "b.zip")
    assert tree(tmp_path) == before


def test_a_zip_that_only_has_a_manifest_stays(tiny, tmp_path):
    for number, text in enumerate([b"{}", b'{"format": "t2v-bundle"}', b"0" * (9 << 20)]):
        zip_of(tmp_path / f"{number}.zip", {"manifest.json": text, "photo.jpg": b"a person's"})
        before = (tmp_path / f"{number}.zip").read_bytes()
        with pytest.raises(BundleError, match="it is not a bundle; give another name"):
            tiny.write(tmp_path / f"{number}.zip")
        assert (tmp_path / f"{number}.zip").read_bytes() == before


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_bundle_has_the_modes_of_the_umask_and_opens_again(tiny, tmp_path, umask, name):
    path = tiny.write(tmp_path / name)
    tiny.write(path)
    for one in (path, *path.rglob("*")):
        assert stat.S_IMODE(one.stat().st_mode) == (0o777 if one.is_dir() else 0o666) & ~umask, one
    Bundle.open(path).close()
