"""Long free runs: how far state, motion and frames stray from the baseline, and whether motion stays alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2v_edge import Pipeline
from t2v_export.evaluate import play
from t2v_export.evaluate.fidelity import Frame, psnr
from t2v_export.evaluate.tasks import WorkerEngines

EARLY, LATE_STEPS = (50, 150), 50
FRAMES = (1, 10, 100, 300, 1000)


@dataclass(frozen=True)
class MotionActivity:
    """Of one run: `speed`, mean absolute change of motion from step to step; `spread`, its standard deviation in time,
    the mean over its elements. Both outlive chaos: two runs that have parted still share them.
    """

    speed: float
    spread: float


@dataclass(frozen=True, eq=False)
class Drift:
    """One caption run freely. `state`, `motion`: relative error of each step, (steps,), by (candidate, baseline).

    `frames`: PSNR in dB by (candidate, baseline) and number of steps. `lively`: by mix.
    """

    state: Mapping[tuple[str, str], NDArray[np.float64]]
    motion: Mapping[tuple[str, str], NDArray[np.float64]]
    frames: Mapping[tuple[str, str], Mapping[int, float]]
    lively: Mapping[str, MotionActivity]


def run_free(engines: WorkerEngines, caption: int) -> Drift:
    """Run one caption for the setting's steps in every mix at once, from the same seed; nothing is kept of a step."""
    setting, pipelines = engines.setting, engines.pipelines
    draws = {name: play.draws_of(p, setting.seed + caption) for name, p in pipelines.items()}
    runs = {name: play.step_motion(p, engines.script(caption), draws[name]) for name, p in pipelines.items()}
    pairs = [(p.candidate, p.baseline, p.comparable) for p in setting.pairs]
    steps, stops = setting.drift_steps, set(frame_steps(setting.drift_steps))
    state = {(c, b): np.zeros(steps) for c, b, can in pairs if can.states}
    motion = {(c, b): np.zeros(steps) for c, b, can in pairs if can.motion}
    frames: dict[tuple[str, str], dict[int, float]] = {(c, b): {} for c, b, can in pairs if can.frames}
    gauges = {name: _Gauge() for name in pipelines}
    for step in range(steps):
        made = {name: next(run) for name, run in runs.items()}
        for name, gauge in gauges.items():
            gauge.add(made[name].motion)
        for (c, b), errors in state.items():
            errors[step] = _relative(made[c].states, made[b].states)
        for (c, b), errors in motion.items():
            errors[step] = _relative({"": made[c].motion}, {"": made[b].motion})
        if step + 1 in stops and frames:
            drawn = {name: _frame(pipelines[name], made[name], draws[name].render) for name in pipelines}
            for (c, b), found in frames.items():
                found[step + 1] = psnr(drawn[c], drawn[b])
    return Drift(state, motion, frames, {name: gauge.lively() for name, gauge in gauges.items()})


def frame_steps(steps: int) -> tuple[int, ...]:
    """After how many steps frames are looked at."""
    return tuple(sorted({at for at in FRAMES if at < steps} | {steps}))


def windows(steps: int) -> dict[str, tuple[int, int]]:
    """The early and late steps whose mean errors are set side by side: 50-150 and the last 50 of 1,000."""
    low, high = EARLY
    if steps < high + LATE_STEPS:  # a short run: its second quarter and its last
        return {"early": (steps // 4, max(1, steps // 2)), "late": (3 * steps // 4, steps)}
    return {"early": (low, high), "late": (steps - LATE_STEPS, steps)}


def _relative(one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean distance of all arrays, relative to the length of `other`."""
    apart = sum(float(np.square(one[name].astype(np.float64) - other[name]).sum()) for name in other)
    length = sum(float(np.square(value.astype(np.float64)).sum()) for value in other.values())
    return float(np.sqrt(apart / max(length, 1e-12))) if apart else 0.0


def _frame(pipeline: Pipeline, step: play.MotionStep, noises: Mapping[str, play.Floats]) -> Frame:
    return play.render_at(pipeline, play.Take(step.motion, step.condition, noises), 0)


class _Gauge:
    """Running sums of a motion: its changes, and first and second moments."""

    def __init__(self) -> None:
        self._before: NDArray[np.float64] | None = None
        self._changes = 0.0
        self._sum, self._squares, self._count = 0.0, 0.0, 0

    def add(self, motion: NDArray[np.float32]) -> None:
        now = motion[0].astype(np.float64)
        if self._before is not None:
            self._changes += float(np.abs(now - self._before).mean())
        self._before = now
        self._sum, self._squares, self._count = self._sum + now, self._squares + now**2, self._count + 1

    def lively(self) -> MotionActivity:
        mean = self._sum / self._count
        variance = np.maximum(0.0, self._squares / self._count - mean**2)
        return MotionActivity(self._changes / max(1, self._count - 1), float(np.sqrt(variance).mean()))
