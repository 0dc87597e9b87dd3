"""A bundle against its FP32, and against another model: play, measure, report."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.manifest import FILE_NAME
from t2v_edge.device.profile import load_profile
from t2v_edge.errors import UsageError
from t2v_export.compare import clips
from t2v_export.compare.measures import cost, drift
from t2v_export.evaluate import tasks
from t2v_export.evaluate.caption_set import SlottedCaption
from t2v_export.evaluate.evaluator import EvaluatorSpec, read_spec
from t2v_export.evaluate.mixes import AGAINST, DEFAULT, EXACT, Comparable, mix_called, mixes_of
from t2v_export.evaluate.readings import named_values
from t2v_export.evaluate.tasks import Pair, TaskSettings, spaced
from t2v_export.evaluate.workers import Work, perform


@dataclass(frozen=True)
class CompareOptions:
    """How much to play, and how.

    captions: caption i is played with `seed` + i; those with slots are judged. evaluator: its folder, or None. clips,
    seconds: how many captions are played whole, and for how long. drift_runs, drift_steps: how many free runs, and
    their base steps. pictures: clips that are shown. against: a bundle or a checkpoint folder to compare with as well.
    judged: the mix that demands are about. engine, processes: each process plays on one thread. timing: measure latency
    and memory; without it the report does not depend on the machine's speed. allow_code: see `load_checkpoint`.
    """

    captions: tuple[SlottedCaption, ...]
    evaluator: Path | None = None
    against: Path | None = None
    judged: str = DEFAULT
    clips: int = 16
    seconds: float = 4.0
    drift_runs: int = 8
    drift_steps: int = 1000
    pictures: int = 4
    seed: int = 0
    engine: str = "onnxruntime"
    processes: int = 2
    timing: bool = True
    allow_code: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        least = {"clips": 1, "drift_runs": 0, "drift_steps": 2, "pictures": 0, "processes": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected {low} or more")
        if not self.captions:
            raise UsageError("there are no captions to compare with; give --captions")
        if not 0 < self.seconds <= 600:
            raise UsageError(f"--seconds is {self.seconds}, expected more than 0 and at most 600")


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that was measured, as numbers.

    `default`: name of the bundle's default mix. `judged`: name of the mix that demands are about.
    """

    options: CompareOptions
    setting: TaskSettings
    default: str
    judged: str
    evaluator: EvaluatorSpec | None
    readings: tuple[dict[str, tasks.VideoReading], ...]
    clips: tuple[clips.Clip, ...]
    drifts: tuple[drift.Drift, ...]
    costs: dict[str, dict[str, Any]]
    latencies: dict[str, dict[str, Any]]
    memory: dict[str, int]


def compare_bundle(path: Path, options: CompareOptions) -> Comparison:
    """Play the bundle at `path` in all its mixes and measure; raises `BundleError`, `UsageError`, `EngineError`."""
    evaluator = read_spec(options.evaluator)[0] if options.evaluator else None
    if evaluator:
        named_values(options.captions, evaluator.slots)
    with opened(options) as against:
        with Bundle.open(path) as bundle:
            mixes, default = mixes_of(bundle)
            judged = mix_called(options.judged, mixes, default).name
            pairs = [Pair(mix.name, EXACT, Comparable.of(bundle.manifest, bundle.manifest)) for mix in mixes[1:]]
            if against is not None:
                can = Comparable.of(bundle.manifest, against.manifest)
                exact = mixes_of(against)[0][0]
                pairs += [Pair(mix.name, AGAINST, can) for mix in mixes if mix.name in (EXACT, default, judged)]
                mixes = (*mixes, replace(exact, name=AGAINST))
        texts = tuple(caption.text for caption in options.captions)
        setting = TaskSettings(
            mixes,
            tuple(pairs),
            texts,
            options.seed,
            options.engine,
            options.evaluator,
            options.seconds,
            options.drift_steps,
        )
        return _measure(options, setting, default, judged, evaluator)


@contextmanager
def opened(options: CompareOptions) -> Iterator[Bundle | None]:
    """What `against` names as a bundle: itself, or a checkpoint's FP32 export, which lives as long as this is open."""
    if options.against is None:
        yield None
    elif not (options.against / "config.json").is_file() or (options.against / FILE_NAME).is_file():
        with Bundle.open(options.against) as bundle:
            yield bundle
    else:
        from t2v_export.exporter.export import ExportOptions, export_checkpoint  # imports torch

        with TemporaryDirectory(prefix="t2v-compare-") as folder:
            settings = ExportOptions(("fp32",), allow_code=options.allow_code, measure=False, progress=options.progress)
            export_checkpoint(options.against, Path(folder) / "against", load_profile("cpu"), settings)
            with Bundle.open(Path(folder) / "against") as bundle:
                yield bundle


def _measure(
    options: CompareOptions, setting: TaskSettings, default: str, judged: str, evaluator: EvaluatorSpec | None
) -> Comparison:
    work, weights = _plan(options, setting, evaluator)
    done: list[Any] = []
    turns = cost.WARM_UP + cost.MAX_TURNS + len(setting.mixes) if options.timing else 0
    with tqdm(
        total=sum(weights) + turns * len(setting.mixes),
        desc="compare",
        unit="frame",
        file=sys.stderr,
        disable=None if options.progress else True,
        leave=False,
    ) as bar:
        with tasks.WorkerEngines(setting) as engines:
            for result, weight in zip(perform(engines, work, options.processes), weights):
                done.append(result)
                bar.update(weight)
        costs = cost.static_costs(setting.mixes)
        latencies, memory = {}, {}
        if options.timing:
            memory = {mix.name: cost.measure_memory(mix, options.engine, setting.captions[0]) for mix in setting.mixes}
            latencies = cost.measure_latencies(
                setting.mixes,
                options.engine,
                None,
                setting.captions[0],
                options.seed,
                lambda: bar.update(len(setting.mixes)),
            )
    read, played, free = (
        tuple(result for (job, _), result in zip(work, done) if job is kind)
        for kind in (tasks.read_caption, clips.play_clip, drift.run_free)
    )
    return Comparison(options, setting, default, judged, evaluator, read, played, free, costs, latencies, memory)


def _plan(
    options: CompareOptions, setting: TaskSettings, evaluator: EvaluatorSpec | None
) -> tuple[list[tuple[Work, Any]], list[int]]:
    """The tasks, and about how many frames each costs."""
    count, mixes = len(setting.captions), len(setting.mixes)
    work: list[tuple[Work, Any]] = []
    weights: list[int] = []
    chosen = spaced(count, options.clips)
    pictured = {chosen[i] for i in spaced(len(chosen), options.pictures)} if options.pictures else set()
    with Bundle.open(setting.mixes[0].bundle) as bundle:
        frames = clips.steps_of(setting, bundle.manifest.video.fps)
    for index in chosen:
        work.append((clips.play_clip, clips.ClipTask(index, index in pictured)))
        weights.append(frames * (mixes + len(setting.pairs)))
    for index in spaced(count, options.drift_runs) if options.drift_runs else []:
        work.append((drift.run_free, index))
        weights.append(mixes * (len(drift.frame_steps(options.drift_steps)) + options.drift_steps // 100))
    for index in range(count) if evaluator else []:
        work.append((tasks.read_caption, index))
        weights.append((mixes + 1) * (evaluator.frames if evaluator else 0))
    return work, weights


def captions_sha256(captions: tuple[SlottedCaption, ...]) -> str:
    """The hash of the captions, in order."""
    return hashlib.sha256("\n".join(caption.text for caption in captions).encode()).hexdigest()
