"""What is compared: a mix is one choice of graph for each stage of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from t2v_edge import Pipeline
from t2v_edge.bundle.bundle import Bundle, Manifest
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.engine.base import Engine, EngineOptions
from t2v_edge.engine.registry import open_engine
from t2v_edge.errors import UsageError
from t2v_edge.play.model import Model
from t2v_edge.spec import STAGES, StageSpec
from t2v_edge.util.closing import Closing

EXACT, DEFAULT, AGAINST = "fp32", "default", "against"


@dataclass(frozen=True)
class VariantMix:
    """A bundle with a variant chosen for each stage. `filled`: stages that its variant lacks and FP32 stands in for."""

    name: str
    bundle: Path
    variants: Mapping[str, str]
    filled: tuple[str, ...] = ()


def mixes_of(bundle: Bundle) -> tuple[tuple[VariantMix, ...], str]:
    """A bundle's mixes, FP32 first, and the name of its default mix.

    Each variant is a mix; FP32 fills the stages that it lacks. The default mix is added unless another variant's mix
    equals it. A default of FP32 alone is added too: playing it shows that playing repeats exactly. Raises `UsageError`
    if a stage has no FP32, or a variant has a name with another meaning here.
    """
    manifest = bundle.manifest
    exact = manifest.variants.get(EXACT, {})
    missing = [stage for stage in STAGES if stage not in exact]
    if missing:
        raise UsageError(f"{bundle.path} has no {EXACT} graph of {', '.join(missing)} to compare with; export it again")
    for name in (DEFAULT, AGAINST):
        if name in manifest.variants:
            raise UsageError(
                f"{bundle.path} has a variant called {name!r}, which has another meaning in a comparison; "
                "export it under another name"
            )
    mixes = [VariantMix(EXACT, bundle.path, dict.fromkeys(STAGES, EXACT))]
    for name, graphs in manifest.variants.items():
        if name != EXACT:
            filled = tuple(stage for stage in STAGES if stage not in graphs)
            mixes.append(VariantMix(name, bundle.path, {s: EXACT if s in filled else name for s in STAGES}, filled))
    for mix in mixes[1:]:
        if mix.variants == manifest.default:
            return tuple(mixes), mix.name
    return (*mixes, VariantMix(DEFAULT, bundle.path, dict(manifest.default))), DEFAULT


def mix_called(name: str, mixes: Sequence[VariantMix], default: str) -> VariantMix:
    """The mix of a bundle called `name`; ``default`` means its default mix. Raises `UsageError` with all names."""
    known = {mix.name: mix for mix in mixes if mix.name != AGAINST}
    known[DEFAULT] = known[default]
    if name not in known:
        raise UsageError(f"--variant {name!r} is not among what is compared; choose one of: {', '.join(known)}")
    return known[name]


class EnginePool(Closing):
    """Engines loaded on first use, each graph once, and pipelines made of them; a context manager.

    engine: a name of `registry.ENGINES`. threads: CPU threads of an operator, None for the engine's choice.
    """

    def __init__(self, engine: str, threads: int | None) -> None:
        self._engine, self._options = engine, EngineOptions(threads)
        self._stack = ExitStack()
        self._bundles: dict[Path, Bundle] = {}
        self._engines: dict[tuple[Path, str, str], Engine] = {}
        self._pipelines: dict[str, Pipeline] = {}

    def pipeline(self, mix: VariantMix) -> Pipeline:
        """The mix's pipeline; it belongs to the pool."""
        if mix.name not in self._pipelines:
            bundle = self._bundle(mix.bundle)
            manifest = bundle.manifest
            tokenizer = CaptionTokenizer(bundle.tokenizer_json, manifest.tokenizer.tokens, manifest.tokenizer.pad_id)
            engines = {stage: self._stage(bundle, mix.variants[stage], stage) for stage in STAGES}
            self._pipelines[mix.name] = Pipeline(Model(manifest, tokenizer, engines, mix.variants))
        return self._pipelines[mix.name]

    def _bundle(self, path: Path) -> Bundle:
        if path not in self._bundles:
            self._bundles[path] = self._stack.enter_context(Bundle.open(path))
        return self._bundles[path]

    def _stage(self, bundle: Bundle, variant: str, stage: str) -> Engine:
        key = (bundle.path, variant, stage)
        if key not in self._engines:
            graph, spec = bundle.graph(variant, stage), bundle.manifest.stages[stage]
            self._engines[key] = self._stack.enter_context(open_engine(self._engine, graph, spec, self._options))
        return self._engines[key]

    def close(self) -> None:
        """Free the engines."""
        self._stack.close()


@dataclass(frozen=True)
class Comparable:
    """Which results of two models can be compared step by step and pixel by pixel. Others are compared as statistics.

    `motion`, `states`: motion vectors and recurrent states have one meaning. `frames`: frames show the same moment at
    the same size. `render`: one renderer can draw the other's motion.
    """

    motion: bool
    states: bool
    frames: bool
    render: bool

    @classmethod
    def of(cls, one: Manifest, other: Manifest) -> Comparable:
        mine, theirs = one.stages, other.stages
        drawn = _drawn(mine) == _drawn(theirs)  # otherwise the same seed gives other noise
        motion = drawn and mine["motion"].results == theirs["motion"].results and one.video.fps == other.video.fps
        size = (one.video.height, one.video.width) == (other.video.height, other.video.width)
        return cls(
            motion=motion,
            states=motion and mine["motion"].states == theirs["motion"].states,
            frames=drawn and size and one.video.fps == other.video.fps,
            render=motion and size and mine["render"].inputs == theirs["render"].inputs,
        )

    def reasons(self) -> tuple[str, ...]:
        """Sentences about what cannot be compared."""
        sentences = {
            "the recurrent states differ in shape, so their error has no meaning": self.states or not self.motion,
            "motion vectors, noises or rates differ, so motion is compared by its statistics only": self.motion,
            "video size, rate or noises differ, so frames are not compared pixel by pixel": self.frames,
            "the renderers take different inputs, so neither draws the other's motion": self.render,
        }
        return tuple(sentence for sentence, holds in sentences.items() if not holds)


def _drawn(stages: Mapping[str, StageSpec]) -> list[object]:
    """All that a stream draws, in order: only where this is equal does a seed give two models the same noise."""
    motion = stages["motion"]
    states = [s.shape for s in motion.states if s.start == "normal"]
    steps = [n for n in motion.noises if n.cadence == "step"]
    return [motion.noises, stages["render"].noises, states if steps else None]
