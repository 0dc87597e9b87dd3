"""The settings and engines of a comparison's workers, and their first task: captions read by the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t2v_edge import Pipeline
from t2v_export.evaluate import play
from t2v_export.evaluate.evaluator import Evaluator
from t2v_export.evaluate.mixes import Comparable, EnginePool, VariantMix

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Pair:
    """A candidate and its baseline, by mix name."""

    candidate: str
    baseline: str
    comparable: Comparable


@dataclass(frozen=True)
class TaskSettings:
    """All that a worker needs: what to play, and how. Caption i is played with `seed` + i.

    `mixes`: the reference first. `pairs`: which are compared. `seconds`: of a clip. `drift_steps`: of a free run.
    """

    mixes: tuple[VariantMix, ...]
    pairs: tuple[Pair, ...]
    captions: tuple[str, ...]
    seed: int
    engine: str
    evaluator: Path | None
    seconds: float
    drift_steps: int

    @property
    def other_seed(self) -> int:
        """Where the seeds of the second playing of the reference begin, past those of the first."""
        return self.seed + len(self.captions)


class WorkerEngines:
    """Engines, one CPU thread each, opened on first use: a worker is sent the setting alone. A context manager."""

    def __init__(self, setting: TaskSettings) -> None:
        self.setting = setting
        self.pool = EnginePool(setting.engine, threads=1)

    def __reduce__(self) -> tuple[type[WorkerEngines], tuple[TaskSettings]]:
        return WorkerEngines, (self.setting,)

    def __enter__(self) -> WorkerEngines:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.close()

    @cached_property
    def pipelines(self) -> dict[str, Pipeline]:
        """By mix name, in order."""
        return {mix.name: self.pool.pipeline(mix) for mix in self.setting.mixes}

    @cached_property
    def evaluator(self) -> Evaluator:
        assert self.setting.evaluator is not None
        return Evaluator(self.setting.evaluator)

    def script(self, index: int) -> tuple[tuple[int, str], ...]:
        return ((0, self.setting.captions[index]),)


@dataclass(frozen=True, eq=False)
class VideoReading:
    """What the evaluator read of one video: an index a slot, and its features (d,)."""

    values: Sequence[int]
    features: NDArray[np.float32]


def read_caption(engines: WorkerEngines, index: int) -> dict[str, VideoReading]:
    """Play a caption in every mix, and in the reference once more with another seed as ``""``, and read them."""
    setting, read = engines.setting, {}
    for name, pipeline in engines.pipelines.items():
        read[name] = _read(engines, pipeline, index, setting.seed + index)
    reference = engines.pipelines[setting.mixes[0].name]
    return {**read, "": _read(engines, reference, index, setting.other_seed + index)}


def _read(engines: WorkerEngines, pipeline: Pipeline, index: int, seed: int) -> VideoReading:
    positions = engines.evaluator.spec.positions(pipeline.manifest.video.fps, WARM_UP_S)
    played = play.take(pipeline, engines.script(index), seed, int(np.ceil(positions[-1])) + 1)
    return VideoReading(*engines.evaluator.read([play.render_at(pipeline, played, at) for at in positions]))


def spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spread, the first among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})
