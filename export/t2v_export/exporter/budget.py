"""The accuracy budget: stages of the default mix get more exact variants until the evaluator reads it well enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_export.evaluate.accuracy import paired_differences
from t2v_export.evaluate.caption_set import SlottedCaption
from t2v_export.evaluate.evaluator import read_spec
from t2v_export.evaluate.mixes import DEFAULT, EXACT, VariantMix
from t2v_export.evaluate.readings import Readings, named_values
from t2v_export.evaluate.tasks import TaskSettings, WorkerEngines, read_caption
from t2v_export.evaluate.workers import perform
from t2v_export.verify.difference import ENGINE

PROCESSES = 2


@dataclass(frozen=True)
class AccuracyBudget:
    """The bound on what the default mix may lose.

    `max_drop`: percentage points of all-attributes accuracy below FP32, 0 to 100. `evaluator`: folder of the evaluator.
    It reads videos of `captions`; caption i is played with seed i.
    """

    max_drop: float
    evaluator: Path
    captions: tuple[SlottedCaption, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max-drop is {self.max_drop}, expected 0 to 100 percentage points")
        if not any(c.slots for c in self.captions):
            raise UsageError("max-drop asks for accuracy, which needs captions with slots: give a .jsonl file")


@dataclass(frozen=True)
class BudgetResult:
    """The `default` variant of each stage that is within the budget. `rounds`: what was measured, as JSON."""

    default: Mapping[str, str]
    rounds: Sequence[Mapping[str, Any]]


def keep_budget(
    bundle: Path,
    default: Mapping[str, str],
    order: Sequence[str],
    budget: AccuracyBudget,
    advance: Callable[[], object] = lambda: None,
) -> BudgetResult:
    """Change the `default` of a bundle that holds every variant, as little as the budget needs.

    A mix that loses too much is changed in one stage. Each stage that is not FP32 is tried in the next more exact
    variant, in the `order` from exact to fast. The change that loses least is taken. This repeats until the mix is
    within the budget; FP32 in all stages is. `advance` is called after each caption of the first mix. Raises
    `UsageError` for captions that the evaluator does not know.
    """
    slots = read_spec(budget.evaluator)[0].slots
    named = named_values(budget.captions, slots)
    with Bundle.open(bundle) as opened:
        made = {stage: [v for v in order if stage in opened.manifest.variants.get(v, {})] for stage in STAGES}
    exact, mix, rounds = dict.fromkeys(STAGES, EXACT), dict(default), []
    while mix != exact:
        tried = {stage: {**mix, stage: _before(made[stage], mix[stage])} for stage in STAGES if mix[stage] != EXACT}
        read = _readings(bundle, {EXACT: exact, DEFAULT: mix, **tried}, budget, advance)
        readings = {name: Readings(tuple(slots), named, values) for name, values in read.items()}
        lost = {name: -paired_differences(one, readings[EXACT], 0)["all"]["points"] for name, one in readings.items()}
        within = lost[DEFAULT] <= budget.max_drop + 1e-9
        instead = {s: {"variant": other[s], "drop_points": round(lost[s], 3)} for s, other in tried.items()}
        rounds.append({"mix": mix, "drop_points": round(lost[DEFAULT], 3), "kept": within, "instead": instead})
        if within:
            break
        mix, advance = tried[min(tried, key=lambda stage: lost[stage])], lambda: None
    return BudgetResult(mix, rounds)


def _before(variants: Sequence[str], variant: str) -> str:
    """The next more exact of a stage's variants."""
    at = variants.index(variant)
    return variants[at - 1] if at > 0 else EXACT


def _readings(
    bundle: Path, mixes: Mapping[str, Mapping[str, str]], budget: AccuracyBudget, advance: Callable[[], object]
) -> dict[str, NDArray[np.int64]]:
    """The evaluator's readings of each mix, (captions, slots)."""
    texts = tuple(caption.text for caption in budget.captions)
    played = tuple(VariantMix(name, bundle, variants) for name, variants in mixes.items())
    found = []
    with WorkerEngines(TaskSettings(played, (), texts, 0, ENGINE, budget.evaluator, 0.0, 0)) as engines:
        for reading in perform(engines, [(read_caption, i) for i in range(len(texts))], PROCESSES):
            found.append(reading)
            advance()
    return {name: np.array([reading[name].values for reading in found]) for name in mixes}
