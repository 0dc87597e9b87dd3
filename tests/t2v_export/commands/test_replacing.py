"""What `export`, `compress` and `compare` replace: their own results. All else is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from t2v_edge.cli import main
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded

CAPTIONS = ["a person is walking", "a person is running", "a person is dancing", "一 个 人 跑 步"]
RECIPE = """name = "lean"
[[pass]]
kind = "prune"
stages = ["render"]
render_keep = 0.5
round_to = 4
samples = 4
captions = ["captions.txt"]
"""
COMMANDS = {
    "export": ["export", "nowhere", "-o"],
    "zip": ["export", "nowhere", "-o"],
    "compress": ["compress", "nowhere", "--recipe", "small", "-o"],
    "compare": ["compare", "nowhere", "-o"],
}
SMALL = "--no-timing --clips 1 --seconds 0.25 --drift-runs 0 --pictures 0 -n 2 --processes 1".split()


def content(folder):
    """All entries; files with their bytes, links with where they lead."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.is_file() and p.read_bytes()
        for p in sorted(folder.rglob("*"))
    }


def refused(place, capsys, *arguments):
    """The message of a command that must fail and change nothing in `place`."""
    before = content(place)
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "; give another" in error, error
    assert content(place) == before
    return error


@pytest.fixture
def work(tmp_path, monkeypatch, make_checkpoint):
    """A working directory with a checkpoint, a recipe, captions, and a folder and files of a person."""
    make_checkpoint("model")
    (tmp_path / "lean.toml").write_text(RECIPE, "utf-8")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS), "utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "mine" / "config.json").write_text('{"format": "t2v-checkpoint"}')
    (tmp_path / "file").write_text("a person's")
    (tmp_path / "link").symlink_to("mine")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("photo.jpg", b"a person's")
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["export", "compress", "compare"])
@pytest.mark.parametrize(
    "target", [".", "..", "/", "mine", "link", "file", "file/x", "other", "other/encoder", "mine/.."]
)
def test_a_persons_folder_or_file_is_refused_before_any_work(work, capsys, command, target):
    error = refused(work, capsys, *COMMANDS[command], target)
    assert target in error or str(Path(target)) in error


@pytest.mark.parametrize("target", ["mine.zip", "file.zip", "mine-folder.zip"])
def test_a_persons_zip_is_refused_before_any_work(work, capsys, target):
    (work / "file.zip").write_bytes(b"PK\x03\x04 not whole")
    (work / "mine-folder.zip").mkdir()
    assert target in refused(work, capsys, *COMMANDS["zip"], target)


@pytest.mark.parametrize("target", ["model", "model/new", "sub/../model", "."])
@pytest.mark.parametrize("command", [["export", "model"], ["compress", "model", "--recipe", "lean.toml"]])
def test_the_checkpoint_is_no_target_nor_what_is_in_it(work, capsys, command, target):
    refused(work, capsys, *command, "-o", target)


def test_inputs_are_no_targets(work, capsys):
    for flag in ("--captions", "--evaluator", "--judge", "--corpus", "--recipe"):
        (work / "empty").mkdir()
        assert "is used as well" in refused(work, capsys, "export", "nowhere", flag, "empty", "-o", "empty")
        (work / "empty").rmdir()
    compress = ["compress", "model", "--recipe", "lean.toml", "-o"]
    assert "is used as well" in refused(work, capsys, *compress, "out", "--log", "out")
    assert "is used as well" in refused(work, capsys, *compress, "out", "--log", "out/log.json")
    assert "is used as well" in refused(work, capsys, *compress, "out", "--log", "model/log.json")
    assert "it is not the log" in refused(work, capsys, *compress, "out", "--log", "lean.toml")


@pytest.fixture
def compressed(work):
    """The arguments of a compress run that was made once, and its target."""
    arguments = ["compress", "model", "--recipe", "lean.toml", "--train-on", "cpu", "--log", "log.json", "-o", "small"]
    assert main(arguments) == 0
    return arguments, work / "small"


def test_a_compressed_checkpoint_and_its_log_are_replaced(compressed, work, capsys, umask):
    arguments, target = compressed
    before = content(work)
    (work / "small" / "render.safetensors").touch()
    assert main(arguments) == 0
    assert content(work) == before, "the same input gives the same bytes"
    assert json.loads((work / "log.json").read_text()) == {"format": "t2v-compress-log"}
    shutil.rmtree(target)
    assert main(arguments) == 0
    for path in (target, *target.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask
    load_checkpoint(target)


@pytest.mark.parametrize(
    "name, named",
    [
        ("notes.txt", "notes.txt in it"),
        ("encoder/vocab.txt", "encoder/vocab.txt in it"),
        ("README.md", "README.md in it was changed"),
        ("render.safetensors", "did not write it"),
    ],
)
def test_a_compressed_checkpoint_that_a_person_changed_stays(compressed, work, capsys, name, named):
    arguments, target = compressed
    if name.endswith("safetensors"):
        shutil.copy(work / "model" / name, target / name)
    else:
        (target / name).write_text("a person's")
    assert named in refused(work, capsys, *arguments)


def test_a_file_that_comes_while_a_checkpoint_is_made_stays_and_so_does_the_checkpoint(compressed, work, monkeypatch):
    arguments, target = compressed
    from t2v_export.compress import passes

    def slow(*given):
        made = compress(*given)
        (target / "notes.txt").write_text("a person's")
        (work / "log.json").write_text("a person's")
        return made

    compress = passes.compress
    monkeypatch.setattr(passes, "compress", slow)
    assert main(arguments) == 1
    assert (target / "notes.txt").read_text() == (work / "log.json").read_text() == "a person's"
    load_checkpoint(work / "small-1")
    assert json.loads((work / "log-1.json").read_text())["format"] == "t2v-compress-log"


def test_saving_a_checkpoint_again_replaces_it_and_nothing_else(work):
    from t2v_edge.errors import CheckpointError

    checkpoint = load_checkpoint(work / "model")
    for _ in range(2):
        save_loaded(checkpoint, work / "saved")
    with pytest.raises(CheckpointError, match="the toolchain did not write it"):
        save_loaded(checkpoint, work / "mine")
    (work / "saved" / "notes.txt").write_text("a person's")
    with pytest.raises(CheckpointError, match="notes.txt in it is not the checkpoint's"):
        save_loaded(checkpoint, work / "saved")
    assert (work / "saved" / "notes.txt").read_text() == "a person's"


def test_a_bundle_and_a_comparison_are_replaced_and_a_persons_file_in_them_stays(work, capsys):
    export = ["export", "model", "--variants", "fp32", "--no-timing", "-o"]
    compare = ["compare", "bundle", *SMALL, "-o", "report"]
    for _ in range(2):
        assert main([*export, "bundle"]) == main([*export, "bundle.zip"]) == main(compare) == 0
    assert "it is not a bundle" in refused(work, capsys, *COMMANDS["export"], "report")
    for target, command in (("bundle", COMMANDS["export"]), ("report", COMMANDS["compare"])):
        (work / target / "notes.txt").write_text("a person's")
        assert "notes.txt in it" in refused(work, capsys, *command, target)
        (work / target / "notes.txt").unlink()
    for target in ("bundle", "bundle/report", "model", "captions.txt"):
        inputs = ["--evaluator", "model", "--captions", "captions.txt"]
        refused(work, capsys, "compare", "bundle", *inputs, "-o", target)
    with zipfile.ZipFile(work / "bundle.zip", "a") as archive:
        archive.writestr("notes.txt", "a person's")
    assert "notes.txt in it" in refused(work, capsys, *COMMANDS["zip"], "bundle.zip")


def test_a_file_that_comes_during_an_export_stays_and_so_does_the_bundle(work, monkeypatch, capsys):
    from t2v_edge.bundle.bundle import Bundle
    from t2v_export.exporter import export

    def slow(*given):
        results = run_plan(*given)
        (work / "bundle").mkdir()
        (work / "bundle" / "notes.txt").write_text("a person's")
        return results

    run_plan = export.run_plan
    monkeypatch.setattr(export, "run_plan", slow)
    assert main(["export", "model", "--variants", "fp32", "--no-timing", "-o", "bundle"]) == 1
    assert "The finished work is in" in capsys.readouterr().err
    assert content(work / "bundle") == {"notes.txt": b"a person's"}
    Bundle.open(work / "bundle-1").close()
