"""The work of a comparison in pieces, one caption each, and the processes that do it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from t2v_edge import Pipeline
from t2v_export.compare import play
from t2v_export.compare.evaluator import Evaluator
from t2v_export.compare.lanes import Comparable, Lane, Rack

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Pair:
    """A candidate and what it is measured against, by lane name."""

    candidate: str
    baseline: str
    comparable: Comparable


@dataclass(frozen=True)
class Setting:
    """All that a worker needs: what to play, and how. Caption i is played with `seed` + i.

    `lanes`: the reference first. `pairs`: which are compared. `seconds`: of a clip. `drift_steps`: of a free run.
    """

    lanes: tuple[Lane, ...]
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


class Studio:
    """A worker's engines, one CPU thread each, opened on first use."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rack = Rack(setting.engine, threads=1)

    @cached_property
    def pipelines(self) -> dict[str, Pipeline]:
        """By lane name, in order."""
        return {lane.name: self.rack.pipeline(lane) for lane in self.setting.lanes}

    @cached_property
    def evaluator(self) -> Evaluator:
        assert self.setting.evaluator is not None
        return Evaluator(self.setting.evaluator)

    def script(self, index: int) -> tuple[tuple[int, str], ...]:
        return ((0, self.setting.captions[index]),)


@dataclass(frozen=True, eq=False)
class Reading:
    """What the evaluator read of one video: an index a slot, and its features (d,)."""

    values: Sequence[int]
    features: NDArray[np.float32]


def read_caption(studio: Studio, index: int) -> dict[str, Reading]:
    """Play a caption in every lane, and in the reference once more with another seed as ``""``, and read them."""
    setting, read = studio.setting, {}
    for name, pipeline in studio.pipelines.items():
        read[name] = _read(studio, pipeline, index, setting.seed + index)
    reference = studio.pipelines[setting.lanes[0].name]
    return {**read, "": _read(studio, reference, index, setting.other_seed + index)}


def _read(studio: Studio, pipeline: Pipeline, index: int, seed: int) -> Reading:
    positions = studio.evaluator.spec.positions(pipeline.manifest.video.fps, WARM_UP_S)
    played = play.take(pipeline, studio.script(index), seed, int(np.ceil(positions[-1])) + 1)
    return Reading(*studio.evaluator.read([play.render_at(pipeline, played, at) for at in positions]))


Work = Callable[[Studio, Any], Any]

_studio_of_worker: list[Studio] = []  # a pool hands its workers nothing else that lives from task to task


def _start_worker(setting: Setting) -> None:
    # Ctrl-C reaches the whole group: workers go at once and without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cv2.setNumThreads(1)
    _studio_of_worker[:] = [Studio(setting)]


def _work(task: tuple[Work, Any]) -> Any:
    work, argument = task
    return work(_studio_of_worker[0], argument)


def perform(setting: Setting, tasks: Sequence[tuple[Work, Any]], processes: int) -> Iterator[Any]:
    """Do every task, a module-level function of a studio and an argument, and yield the results in order.

    In `processes` processes of one thread each; where the caller stops, unfinished work is dropped and they end.
    """
    if processes <= 1:
        studio = Studio(setting)
        with studio.rack:
            for work, argument in tasks:
                yield work(studio, argument)
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _start_worker, (setting,))
    try:
        yield from pool.map(_work, tasks, chunksize=1)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` indices, evenly spread, the first among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})


