"""Trials of a bundle on this machine: its golden vectors through every engine, variant by variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden, GoldenDifference, Tolerance
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.doctor.finding import FAIL, OK, WARN, Finding
from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.registry import BUILT, available_engines, is_installed, open_engine
from t2v_edge.engine.tensorrt.api import RUNS
from t2v_edge.errors import CaptionError, EngineError
from t2v_edge.spec import STAGES


def _manifest_default(bundle: Bundle) -> Mapping[str, str]:
    return bundle.manifest.default


@dataclass(frozen=True)
class EngineOpener:
    """How an engine is opened.

    open: of (bundle, variant, stage); raises `EngineError`. plays: of a bundle; stage -> the variant that this engine
    would play, without the stages that it would not play.
    """

    open: Callable[[Bundle, str, str], Engine]
    plays: Callable[[Bundle], Mapping[str, str]] = _manifest_default


@dataclass(frozen=True)
class Trial:
    """The result of one graph's golden vectors on one engine.

    default: whether the engine would play this variant of the stage. difference, tolerance: None if the engine could
    not run the graph. problem: why it could not.
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


def installed_engines() -> dict[str, EngineOpener]:
    """Every installed engine, the preferred first, and how to open it.

    The doctor builds nothing: of TensorRT it opens only the engines that `t2v-edge build` left in the cache.
    """
    built = [name for name in BUILT if is_installed(name)]
    return {
        **{name: EngineOpener(partial(_open_graph, name)) for name in available_engines()},
        **{name: EngineOpener(partial(_open_kept, name), partial(_planned, name)) for name in built},
    }


def _open_graph(name: str, bundle: Bundle, variant: str, stage: str) -> Engine:
    return open_engine(name, bundle.graph(variant, stage), bundle.manifest.stages[stage], EngineOptions())


def _open_kept(name: str, bundle: Bundle, variant: str, stage: str) -> Engine:
    try:
        from t2v_edge.engine.tensorrt.build import Builder, BuildOptions
    except ImportError as error:
        raise EngineError(f"{name} cannot be used ({error}); pip install 't2v-edge[tensorrt]'") from error
    return Builder(bundle, BuildOptions(name)).open_kept(variant, stage)


def _planned(name: str, bundle: Bundle) -> Mapping[str, str]:
    """The variants that `t2v-edge build` chose. Those it refused are in its cache too, and are never played."""
    try:
        from t2v_edge.engine.tensorrt.build import Builder, BuildOptions

        plan = Builder(bundle, BuildOptions(name)).plan()
    except (ImportError, EngineError):
        return {}
    chosen = {} if plan is None else plan.stages
    return {stage: variant for stage, (engine, variant) in chosen.items() if engine == name}


def graphs_to_try(bundle: Bundle, engines: Mapping[str, EngineOpener]) -> tuple[tuple[str, str, str], ...]:
    """(engine, variant, stage) of every graph that an engine takes. TensorRT does not take unsigned INT8."""
    return tuple(
        (engine, variant, stage)
        for engine in engines
        for variant, graphs in bundle.manifest.variants.items()
        for stage in STAGES
        if stage in graphs and (engine not in BUILT or graphs[stage].precision in RUNS)
    )


def try_engines(
    bundle: Bundle,
    golden: Golden,
    engines: Mapping[str, EngineOpener],
    advance: Callable[[int], object] = lambda done: None,
) -> tuple[Trial, ...]:
    """Run the golden vectors on each of `graphs_to_try`. advance: called after each with the number done.

    A graph that an engine cannot load or run is a trial with a `problem`. Raises `BundleError` for a damaged bundle.
    """
    trials: list[Trial] = []
    plays = {name: opener.plays(bundle) for name, opener in engines.items()}
    for engine, variant, stage in graphs_to_try(bundle, engines):
        default = plays[engine].get(stage) == variant
        tolerance = golden.tolerance(stage, bundle.entry(variant, stage).precision, variant)
        try:
            with engines[engine].open(bundle, variant, stage) as loaded:
                difference = golden.check(stage, loaded.run)
            trials.append(Trial(engine, variant, stage, default, difference, tolerance))
        except EngineError as error:
            trials.append(Trial(engine, variant, stage, default, problem=str(error)))
        advance(len(trials))
    return tuple(trials)


def judge(trials: Sequence[Trial]) -> tuple[Finding, ...]:
    """Findings on trials: each wrong one, and each stage that no engine plays correctly."""
    found = list(_wrong(trials))
    for stage in STAGES:
        if not any(trial.right and trial.default for trial in trials if trial.stage == stage):
            found.append(
                Finding(
                    "golden",
                    FAIL,
                    f"no engine here plays {stage} correctly in its default variant",
                    "try --variant fp32, or export the bundle for this device",
                )
            )
    if not found:
        engines = ", ".join(dict.fromkeys(trial.engine for trial in trials))
        found.append(Finding("golden", OK, f"golden vectors of {len(trials)} graphs are right on {engines}"))
    return tuple(found)


def _wrong(trials: Sequence[Trial]) -> Iterator[Finding]:
    for engine in dict.fromkeys(trial.engine for trial in trials):
        mine = [trial for trial in trials if trial.engine == engine]
        idle = [trial for trial in mine if trial.problem is not None]
        if idle:
            # A missing driver gives the same problem for every graph: name it once.
            problem, _, remedy = (idle[0].problem or "").rpartition("; ")
            graphs = ", ".join(f"{t.variant} {t.stage}" for t in idle)
            verb = "runs no graph" if len(idle) == len(mine) else f"does not run {graphs}"
            yield Finding("golden", WARN, f"{engine} {verb}: {problem or remedy}", remedy if problem else None)
        for trial in mine:
            if trial.problem is None and not trial.right:
                yield Finding(
                    "golden",
                    FAIL if trial.default else WARN,
                    f"{engine} computes {trial.variant} "
                    f"{trial.stage} wrongly: {trial.difference}, allowed is {trial.tolerance}",
                    _instead(trial, trials),
                )


def _instead(trial: Trial, trials: Sequence[Trial]) -> str:
    """What to use in place of a wrong engine."""
    others = [t for t in trials if t.right and t.stage == trial.stage and t.engine != trial.engine]
    same = [t.engine for t in others if t.variant == trial.variant]
    if trial.engine in BUILT:
        return "t2v-edge build BUNDLE --rebuild, which takes only what is right"
    return f"take --engine {same[0]}" if same else f"take another --variant, or upgrade {trial.engine}"


def check_tokenizer(bundle: Bundle, golden: Golden) -> Finding:
    """Whether this machine's tokenizers library gives the golden captions the exporter's tokens."""
    spec = bundle.manifest.tokenizer
    tokenizer = CaptionTokenizer(bundle.tokenizer_json, spec.tokens, spec.pad_id)
    for caption, ids, mask in zip(golden.captions, golden.ids, golden.mask):
        try:
            tokens = tokenizer(caption)
            same = bool((tokens.ids[0] == ids).all() and (tokens.mask[0] == mask).all())
        except CaptionError:
            same = False
        if not same:
            return Finding(
                "tokenizer",
                FAIL,
                f"the caption {caption!r:.80} has other tokens here than at export",
                "pip install -U tokenizers",
            )
    return Finding("tokenizer", OK, f"all {len(golden.captions)} golden captions have the tokens they had at export")
