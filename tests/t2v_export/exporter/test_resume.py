"""An export that was stopped goes on where it was and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.exporter.passes import float32, latency
from t2v_export.recipe import parse_recipe
from t2v_export.store import INDEX, PassStore

PASS = {"kind": "quantize", "text_samples": 12, "motion_samples": 16, "render_samples": 8, "steps": 8}
RECIPE = parse_recipe({"name": "tiny", "pass": [PASS]}, "test")
TOML = "name = 'tiny'\n[[pass]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in PASS.items())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def entries(cache: Path) -> list[Path]:
    return [p for p in sorted((cache / "passes").glob("*")) if not p.name.startswith(".")]


def export(folder, out, cpu, store, **changes):
    options = {"recipe": RECIPE, "measure": False, "store": store, **changes}
    return export_checkpoint(folder, out, cpu, ExportOptions(**options))


def test_export_killed_at_any_pass_resumes_and_ends_with_the_same_bytes(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    (tmp_path / "tiny.toml").write_text(TOML)

    def start(name: str) -> subprocess.Popen[bytes]:
        arguments = [
            "export",
            folder,
            "--recipe",
            tmp_path / "tiny.toml",
            "--no-timing",
            "-o",
            tmp_path / name / "bundle",
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_NUM_THREADS": "1",
            "T2V_EDGE_CACHE": str(tmp_path / name),
        }
        return subprocess.Popen([sys.executable, "-m", "t2v_edge.cli", *map(str, arguments)], env=environment)

    assert start("undisturbed").wait(120) == 0
    wanted, passes = contents(tmp_path / "undisturbed" / "bundle"), len(entries(tmp_path / "undisturbed"))
    assert passes >= 12
    reached = 0
    for stop in (2, passes - 2):
        process = start("killed")
        while len(entries(tmp_path / "killed")) < stop:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "bundle").exists()
        assert stop <= len(entries(tmp_path / "killed")) and reached <= len(entries(tmp_path / "killed"))
        reached = len(entries(tmp_path / "killed"))
    before = {p.name: p.stat().st_ino for p in entries(tmp_path / "killed")}
    assert start("killed").wait(120) == 0
    assert contents(tmp_path / "killed" / "bundle") == wanted
    after = {p.name: p.stat().st_ino for p in entries(tmp_path / "killed")}
    assert {name: after[name] for name in before} == before  # what was finished was not made again


def test_finished_passes_are_not_made_again_and_another_choice_makes_only_what_it_changes(
    make_checkpoint, cpu, tmp_path, monkeypatch
):
    folder, store = make_checkpoint(), PassStore(tmp_path / "passes")
    monkeypatch.setattr(latency, "doubling_forms", lambda model, _: {"built": model})  # its choice needs timing
    export(folder, tmp_path / "one", cpu, store, measure=True, ship="all")
    monkeypatch.setattr(float32, "stage_to_onnx", None)
    monkeypatch.setattr(latency, "measure_latencies", None)
    export(folder, tmp_path / "two", cpu, store, measure=True, ship="all")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")  # times too
    kept = {p.name for p in entries(tmp_path)}
    other = parse_recipe({"name": "other", "pass": [{**PASS, "weight_bits": 8}]}, "test")
    export(folder, tmp_path / "three", cpu, store, recipe=other)
    made = {p.name for p in entries(tmp_path)} - kept
    assert 0 < len(made) <= 3 * 2 + 1  # sensitivity, graphs, verification, of text and render; which look ahead
    with pytest.raises(TypeError):
        export(folder, tmp_path / "four", cpu, PassStore(None))


def test_damaged_entries_are_made_again(make_checkpoint, cpu, tmp_path):
    folder, store = make_checkpoint(), PassStore(tmp_path / "passes")
    export(folder, tmp_path / "one", cpu, store)
    damaged = 0
    for index, entry in enumerate(entries(tmp_path)):
        path = next(p for p in entry.iterdir() if p.name != INDEX)
        if index % 3 == 0:
            path.write_bytes(path.read_bytes()[:-1] + b"\x00")
        elif index % 3 == 1:
            path.unlink()
        else:
            (entry / INDEX).write_text("{}")
        damaged += 1
    assert damaged >= 12
    export(folder, tmp_path / "two", cpu, store)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert all(store.load(entry.name) for entry in entries(tmp_path))
