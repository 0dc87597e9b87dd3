"""A bundle proving itself on this machine: its golden vectors through every engine, variant by variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from t2v_edge.bundle import Bundle
from t2v_edge.checks import FAIL, OK, WARN, Finding
from t2v_edge.engine import Engine, EngineOptions, available_engines, open_engine
from t2v_edge.engine.trt import RUNS
from t2v_edge.errors import CaptionError, T2VError
from t2v_edge.golden import Golden, GoldenDifference, Tolerance
from t2v_edge.spec import STAGES, StageSpec
from t2v_edge.tokenizer import CaptionTokenizer

Open = Callable[[bytes, StageSpec], Engine]
"""Loads a checked graph, as `open_engine` does; raises `EngineError` where this engine cannot have it."""


@dataclass(frozen=True)
class Trial:
    """What one engine made of one graph's golden vectors.

    `default`: whether the bundle plays this variant of the stage by default. `difference` and `tolerance` are None
    where the engine could not run it; `problem` then says why.
    """

    engine: str
    variant: str
    stage: str
    default: bool
    difference: Optional[GoldenDifference] = None
    tolerance: Optional[Tolerance] = None
    problem: Optional[str] = None

    @property
    def right(self) -> bool:
        return self.difference is not None and self.tolerance is not None and self.tolerance.allows(self.difference)

    def to_json(self) -> dict[str, Any]:
        difference = None if self.difference is None else self.difference.to_json()
        tolerance = None if self.tolerance is None else dict(vars(self.tolerance))
        return {**vars(self), "difference": difference, "tolerance": tolerance, "right": self.right}


def installed_engines() -> dict[str, Open]:
    """Every engine whose library is installed, the preferred first, and how it is opened."""

    def opener(name: str) -> Open:
        return lambda graph, spec: open_engine(name, graph, spec, EngineOptions())

    return {name: opener(name) for name in available_engines()}


def graphs_to_try(bundle: Bundle, engines: Mapping[str, Open]) -> tuple[tuple[str, str, str], ...]:
    """(engine, variant, stage) of every graph that an engine is made for; TensorRT takes no unsigned INT8."""
    return tuple(
        (engine, variant, stage)
        for engine in engines
        for variant, graphs in bundle.manifest.variants.items()
        for stage in STAGES
        if stage in graphs and (not engine.startswith("tensorrt") or graphs[stage].precision in RUNS)
    )


def try_engines(
    bundle: Bundle, golden: Golden, engines: Mapping[str, Open], advance: Callable[[int], object] = lambda done: None
) -> tuple[Trial, ...]:
    """Run the golden vectors on each of `graphs_to_try`; `advance` is told after each how many are done.

    What an engine cannot load or run is a trial with a `problem`. Raises `BundleError` where the bundle is damaged.
    """
    trials = []
    for engine, variant, stage in graphs_to_try(bundle, engines):
        entry, spec = bundle.entry(variant, stage), bundle.manifest.stages[stage]
        default = bundle.manifest.default[stage] == variant
        graph = bundle.graph(variant, stage)
        tolerance = golden.tolerance(stage, entry.precision, variant)
        try:
            with engines[engine](graph, spec) as loaded:
                difference = golden.check(stage, loaded.run)
            trials.append(Trial(engine, variant, stage, default, difference, tolerance))
        except T2VError as error:
            trials.append(Trial(engine, variant, stage, default, problem=str(error)))
        advance(len(trials))
    return tuple(trials)


def judge(trials: Sequence[Trial]) -> tuple[Finding, ...]:
    """Findings of what was proved: whatever is wrong is named, and whether every stage has an engine that is right."""
    found = list(_wrong(trials))
    for stage in STAGES:
        mine = [trial for trial in trials if trial.stage == stage and trial.default]
        if not any(trial.right for trial in mine):
            variant = mine[0].variant if mine else "variant"
            found.append(Finding("golden", FAIL, f"no engine here plays the default {variant} of {stage} rightly",
                                 "try --variant fp32, or export the bundle for this device"))
    if not found:
        engines = ", ".join(dict.fromkeys(trial.engine for trial in trials))
        found.append(Finding("golden", OK, f"golden vectors of {len(trials)} graphs come out right on {engines}"))
    return tuple(found)


def _wrong(trials: Sequence[Trial]) -> Iterator[Finding]:
    for trial in trials:
        graph = f"{trial.variant} {trial.stage}"
        others = [p.engine for p in trials if p.right and (p.variant, p.stage) == (trial.variant, trial.stage)]
        take = f"take --engine {others[0]}" if others else "take another --variant"
        if trial.problem is not None:
            yield Finding("golden", WARN, f"{trial.engine} does not run {graph}: {trial.problem}", take)
        elif not trial.right:
            yield Finding("golden", FAIL if trial.default else WARN, f"{trial.engine} computes {graph} wrongly: "
                          f"{trial.difference}, allowed is {trial.tolerance}", f"{take}, or upgrade {trial.engine}")


def check_tokenizer(bundle: Bundle, golden: Golden) -> Finding:
    """Whether this machine's tokenizers library cuts the golden captions as the exporter's did."""
    spec = bundle.manifest.tokenizer
    tokenizer = CaptionTokenizer(bundle.tokenizer_json, spec.tokens, spec.pad_id)
    for caption, ids, mask in zip(golden.captions, golden.ids, golden.mask):
        try:
            tokens = tokenizer(caption)
            same = bool((tokens.ids[0] == ids).all() and (tokens.mask[0] == mask).all())
        except CaptionError:
            same = False
        if not same:
            return Finding("tokenizer", FAIL, f"the caption {caption!r:.80} has other tokens here than at export",
                           "pip install -U tokenizers")
    return Finding("tokenizer", OK, f"all {len(golden.captions)} golden captions have the tokens they had at export")
