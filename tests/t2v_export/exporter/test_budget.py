"""`--max-drop`: stages give way to more exact variants until the evaluator reads the mix well enough."""

from __future__ import annotations

import json

import numpy as np
import pytest

from t2v_edge.cli import main
from t2v_edge.errors import UsageError
from t2v_export.evaluate.caption_set import SlottedCaption
from t2v_export.exporter import budget as budget_module
from t2v_export.exporter.budget import AccuracyBudget, keep_budget
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from tests.t2v_export.compare_samples import write_captions, write_evaluator

CAPTIONS = tuple(SlottedCaption(f"caption {i}", {"light": "dark"}) for i in range(20))
ORDER = ("fp32", "fp16", "int8-u8")


@pytest.fixture
def evaluator(tmp_path):
    return write_evaluator(tmp_path / "evaluator")


@pytest.fixture
def bundle(make_checkpoint, cpu, tmp_path):
    """Of every stage fp32 and fp16."""
    export_checkpoint(make_checkpoint(), tmp_path / "bundle", cpu, ExportOptions(measure=False, ship="all"))
    return tmp_path / "bundle"


@pytest.fixture
def reads(monkeypatch):
    """reads(loss): one caption in 20 is read wrong for each point that `loss` gives to a stage in a variant."""

    def install(loss):
        def read(bundle, lanes, budget, advance):
            made = {}
            for name, mix in lanes.items():
                wrong = sum(loss.get((stage, variant), 0) for stage, variant in mix.items())
                made[name] = np.repeat([[0, 0], [0, 1]], [20 - wrong, wrong], axis=0)
            return made

        monkeypatch.setattr(budget_module, "_readings", read)

    return install


def test_the_stage_that_loses_most_gives_way_first(bundle, reads, evaluator):
    reads({("render", "fp16"): 3, ("text", "fp16"): 1})
    mix = {"text": "fp16", "motion": "fp32", "render": "fp16"}
    kept = keep_budget(bundle, mix, ORDER, AccuracyBudget(5.0, evaluator, CAPTIONS))
    assert dict(kept.default) == {"text": "fp16", "motion": "fp32", "render": "fp32"}
    first, second = kept.rounds
    assert first["drop_points"] == 20 and not first["kept"] and second["drop_points"] == 5 and second["kept"]
    assert first["instead"]["render"] == {"variant": "fp32", "drop_points": 5}


def test_a_budget_of_nothing_ends_with_fp32(bundle, reads, evaluator):
    reads({("render", "fp16"): 1, ("text", "fp16"): 1})
    kept = keep_budget(
        bundle, dict.fromkeys(("text", "motion", "render"), "fp16"), ORDER, AccuracyBudget(0.0, evaluator, CAPTIONS)
    )
    assert kept.default["render"] == kept.default["text"] == "fp32" and kept.rounds[-1]["kept"]


def test_a_mix_within_the_budget_stays(bundle, reads, evaluator):
    reads({("render", "fp16"): 1})
    mix = dict.fromkeys(("text", "motion", "render"), "fp16")
    kept = keep_budget(bundle, mix, ORDER, AccuracyBudget(5.0, evaluator, CAPTIONS))
    assert dict(kept.default) == mix and len(kept.rounds) == 1


def test_budgets_that_cannot_be_measured_are_refused(evaluator):
    with pytest.raises(UsageError, match="captions with slots"):
        AccuracyBudget(1.0, evaluator, (SlottedCaption("a person"),))
    with pytest.raises(UsageError, match="expected 0 to 100"):
        AccuracyBudget(-1.0, evaluator, CAPTIONS)


def test_export_plays_and_reads_its_default_mix(make_checkpoint, evaluator, tmp_path, capsys):
    slotted = write_captions(tmp_path / "captions.jsonl", [{"light": "dark"}] * 6)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\n[[pass]]\nkind = "quantize"\ntext_samples = 12\nmotion_samples = 16\n'
        "render_samples = 8\nsteps = 8\n",
        "utf-8",
    )
    wanted = [
        "export",
        str(make_checkpoint()),
        "--recipe",
        str(recipe),
        "-o",
        str(tmp_path / "b"),
        "--no-cache",
        "--max-drop",
        "0",
        "--json",
    ]
    assert main(wanted) == 2 and "give --evaluator FOLDER" in capsys.readouterr().err
    assert main([*wanted, "--evaluator", str(evaluator), "--judge", str(slotted)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["accuracy"]["max_drop"] == 0 and shown["accuracy"]["captions"] == 6
    for one in shown["accuracy"]["rounds"]:
        assert one["kept"] == (one["drop_points"] <= 0) and set(one["instead"]) <= {"text", "motion", "render"}
