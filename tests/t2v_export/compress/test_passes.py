"""Recipes of several passes: a smaller checkpoint, kept by what it was made from, that exports like any other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.custom_stages.make_checkpoint import make_checkpoint as make_example
from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import verify_bundle
from t2v_edge.cli import main
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.checkpoint.cost import count_macs, count_parameters
from t2v_export.compress import passes as passes_module
from t2v_export.compress.passes import PassOptions, compress, training_device
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.recipe import Recipe, parse_recipe
from t2v_export.store import PassStore

CAPTIONS = ["a person is walking", "a person is running", "a person is dancing", "一 个 人 跑 步"]


@pytest.fixture
def recipe(tmp_path):
    """recipe(render_keep=..., **distill) -> a prune, a distill and a quantize pass of a few steps."""
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(CAPTIONS), "utf-8")

    def make(stages=("text", "motion", "render"), **distill):
        given = {"captions": [str(captions)]}
        steps = {f"{s}_{k}": v for s in ("text", "motion", "render") for k, v in (("steps", 3), ("batch", 4))}
        quantize = {"text_samples": 4, "motion_samples": 8, "render_samples": 8, "steps": 8}
        return parse_recipe(
            {
                "name": "lean",
                "pass": [
                    {"kind": "prune", "stages": ["render"], "render_keep": 0.5, "round_to": 4, "samples": 4, **given},
                    {"kind": "distill", "stages": list(stages), "length": 5, **steps, **given, **distill},
                    {"kind": "quantize", "stages": ["render"], **quantize, **given},
                ],
            },
            "test",
        )

    return make


@pytest.mark.parametrize("name", ["mocogan", "tfgan"])
def test_classes_of_ones_own_are_pruned_taught_and_exported_with_int8(name, recipe, cpu, tmp_path):
    make_example(name, tmp_path / name, size=32)
    options = ExportOptions(recipe=recipe(), allow_code=True, measure=False, ship="all")
    exported = export_checkpoint(tmp_path / name, tmp_path / "bundle", cpu, options)
    assert exported.manifest.name == f"{name}-example-lean"
    with Bundle.open(tmp_path / "bundle") as bundle:
        assert {"fp32", "int8", "int8-u8"} <= set(bundle.manifest.variants)
        verify_bundle(bundle)


def test_smaller_checkpoint_is_saved_and_loaded_like_any_other(recipe, make_checkpoint, tmp_path):
    before = load_checkpoint(make_checkpoint())
    made = compress(before, recipe()).checkpoint
    save_loaded(made, tmp_path / "made", torch.float32)
    after = load_checkpoint(tmp_path / "made")
    cost = [count_macs(c.render, c.render.spec) for c in (before, after)]
    assert cost[1] <= 0.5 * cost[0] and count_parameters(after.render) < count_parameters(before.render)
    for stage in ("text", "motion", "render"):
        for a, b in zip(made.modules[stage].state_dict().values(), after.modules[stage].state_dict().values()):
            torch.testing.assert_close(a, b)
    assert made.sha256 != before.sha256


def test_finished_passes_are_found_and_not_made_again(recipe, make_checkpoint, tmp_path, monkeypatch):
    checkpoint, options = load_checkpoint(make_checkpoint()), PassOptions(store=PassStore(tmp_path / "store"))
    first = compress(checkpoint, recipe(), options)

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(passes_module, "distill_stage", never)
    monkeypatch.setattr(passes_module, "prune_checkpoint", never)
    again = compress(checkpoint, recipe(), options)
    assert again.checkpoint.sha256 == first.checkpoint.sha256 and again.logs == first.logs
    with pytest.raises(AssertionError, match="made again"):
        compress(checkpoint, recipe(render_steps=4), options)


def test_stages_taught_by_processes_of_their_own_come_together(recipe, make_checkpoint, tmp_path, monkeypatch):
    checkpoint, store = load_checkpoint(make_checkpoint()), PassStore(tmp_path / "store")
    for stage in ("render", "text", "motion"):
        made = compress(checkpoint, recipe(), PassOptions(store=store, only_stage=stage))
        assert list(made.logs) == [f"2.{stage}"]
    monkeypatch.setattr(passes_module, "distill_stage", None)
    together = compress(checkpoint, recipe(), PassOptions(store=store))
    alone = compress(load_checkpoint(tmp_path / "checkpoint"), recipe(), PassOptions(store=store))
    assert together.checkpoint.sha256 == alone.checkpoint.sha256
    assert list(together.logs) == ["2.text", "2.motion", "2.render"]


def test_what_follows_a_partly_taught_checkpoint_is_not_taken_for_the_whole(recipe, make_checkpoint, tmp_path):
    checkpoint, store = load_checkpoint(make_checkpoint()), PassStore(tmp_path / "store")
    prune, distill, _ = recipe(stages=("text", "motion")).passes
    two = Recipe("two", (distill, prune, replace(distill, stages=("render",))))
    compress(checkpoint, two, PassOptions(store=store, only_stage="render"))
    made = compress(checkpoint, two, PassOptions(store=store)).checkpoint
    wanted = compress(checkpoint, two, PassOptions()).checkpoint
    assert made.sha256 == wanted.sha256


def test_killed_training_goes_on_and_ends_with_the_same_bytes(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    captions = tmp_path / "c.txt"
    captions.write_text("\n".join(CAPTIONS), "utf-8")
    text = f"""name = "lean"
[[pass]]
kind = "distill"
stages = ["render"]
render_steps = 60
render_batch = 4
length = 5
captions = [{str(captions)!r}]
"""
    (tmp_path / "lean.toml").write_text(text, "utf-8")
    root = Path(__file__).parents[3]
    paths = [str(root / part) for part in (".", "export", "calibration")]
    code = f"""import sys; sys.path[:0] = {paths!r}
from t2v_export.compress.distill import training
training.SAVE_EVERY_S = 0.0
from t2v_edge.cli import main
sys.exit(main(sys.argv[1:]))"""

    def run(cache: str, out: str) -> subprocess.Popen:
        command = [sys.executable, "-c", code, "compress", str(folder), "--recipe", str(tmp_path / "lean.toml")]
        environment = {"T2V_EDGE_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        return subprocess.Popen([*command, "--train-on", "cpu", "-o", str(tmp_path / out)], env=environment)

    killed = run("killed", "never")
    while not list((tmp_path / "killed").rglob("render.state.pt")):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert not (tmp_path / "never").exists() and list((tmp_path / "killed").rglob("render.state.pt"))
    assert run("killed", "resumed").wait() == run("fresh", "whole").wait() == 0
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UsageError, match="device 'cuda:77' is not here"):
        training_device("cuda:77")


def test_recipe_without_a_checkpoint_pass_is_no_recipe_for_compress(make_checkpoint, capsys):
    assert main(["compress", str(make_checkpoint()), "--recipe", "fast", "-o", "x"]) == 2
    assert "export with it instead" in capsys.readouterr().err
