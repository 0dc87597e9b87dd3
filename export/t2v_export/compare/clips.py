"""Clips played frame by frame in every mix at once: pixel differences, temporal quality, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from t2v_export.compare.measures.temporal import MIN_SIDE, Flow, FlowMeter, TemporalSums
from t2v_export.evaluate import play
from t2v_export.evaluate.fidelity import Frame, luminance, psnr, ssim
from t2v_export.evaluate.tasks import Pair, TaskSettings, WorkerEngines

WHOLE, ALONE = "whole_stream", "render_alone"
AMPLIFIED = 8
Sequence_ = tuple[str, str, str]


@dataclass(frozen=True)
class ClipTask:
    """The caption to play, and whether to keep pictures of the clip's middle."""

    caption: int
    pictures: bool


@dataclass(eq=False)
class PairFrames:
    """Of each frame of a pair: PSNR in dB, SSIM, mean absolute difference in levels of 255, and whether it is equal."""

    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    equal: int = 0

    def add(self, one: Frame, other: Frame, planes: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        self.psnr_db.append(psnr(one, other))
        self.ssim.append(ssim(*planes))
        self.error.append(float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean(dtype=np.float64)))
        self.equal += int(np.array_equal(one, other))


@dataclass(frozen=True, eq=False)
class Clip:
    """One caption's clip. `frames`: by (mode, candidate, baseline). `temporal`: by (mode, mix, mix of the flow).

    `same_motion`: (candidate, baseline) whose motion and condition are equal throughout. `pictures`: JPEG files by
    (mix, baseline), of a frame as the mix makes it, or with a baseline its amplified difference from that.
    """

    caption: int
    frames: Mapping[tuple[str, str, str], PairFrames]
    temporal: Mapping[tuple[str, str, str], TemporalSums]
    same_motion: tuple[tuple[str, str], ...]
    pictures: Mapping[tuple[str, str], bytes]


def play_clip(engines: WorkerEngines, task: ClipTask) -> Clip:
    """Play one caption for the setting's seconds.

    Whole stream: each mix's own text, motion and frames. Render alone: a candidate's renderer draws the baseline's
    motion and condition. Frames are made step by step and only two of each sequence are held.
    """
    film = _Film(engines, task.caption)
    middle = film.steps // 2 if task.pictures else None
    for step in range(film.steps):
        film.advance(step)
        if step == middle:
            film.photograph()
    pairs = engines.setting.pairs
    same = tuple((p.candidate, p.baseline) for p in pairs if film.keys[p.candidate] == film.keys[p.baseline])
    return Clip(task.caption, film.frames, film.temporal, same, film.pictures)


class _Film:
    """A clip in progress. A sequence is (bundle, render variant, take); mixes of the same sequence share its frames."""

    def __init__(self, engines: WorkerEngines, caption: int) -> None:
        setting = engines.setting
        self._setting, self._engines = setting, engines
        self._takes: dict[str, play.Take] = {}
        steps = {name: steps_of(setting, p.manifest.video.fps) for name, p in engines.pipelines.items()}
        for name, pipeline in engines.pipelines.items():
            self._takes[name] = play.take(pipeline, engines.script(caption), setting.seed + caption, steps[name])
        self.steps = min(steps.values())
        self.keys = {name: made.key for name, made in self._takes.items()}
        self._mixes = {mix.name: mix for mix in setting.mixes}
        self._before: dict[Sequence_, Frame] = {}
        self._now: dict[Sequence_, Frame] = {}
        self._light: dict[Sequence_, NDArray[np.float32]] = {}
        self._dim: dict[Sequence_, NDArray[np.float32]] = {}
        self._meter = FlowMeter()
        self.frames: dict[tuple[str, str, str], PairFrames] = {}
        self.temporal: dict[tuple[str, str, str], TemporalSums] = {}
        self.pictures: dict[tuple[str, str], bytes] = {}

    def _sequence(self, drawer: str, mover: str) -> Sequence_:
        """Which sequence of frames the mix `drawer` makes of the motion of `mover`."""
        reference = self._setting.mixes[0].name
        # The reference draws for itself: what is measured to be equal to it was really drawn again.
        own = reference if drawer == mover == reference else str(self._mixes[drawer].bundle)
        return own, self._mixes[drawer].variants["render"], self.keys[mover]

    def advance(self, step: int) -> None:
        """Draw every sequence's frame of this step, each once, and measure."""
        self._step = step
        self._before, self._dim, self._now, self._light = self._now, self._light, {}, {}
        flows: dict[Sequence_, Flow] = {}
        for mix in self._mixes:
            own = self._draw(mix, mix)
            self._hold(WHOLE, mix, mix, own, own, flows)
        for pair in self._setting.pairs:
            self._compare(pair, flows)

    def _compare(self, pair: Pair, flows: dict[Sequence_, Flow]) -> None:
        base = self._draw(pair.baseline, pair.baseline)
        found = {}
        if pair.comparable.frames:
            found[WHOLE] = self._draw(pair.candidate, pair.candidate)
        if pair.comparable.render:
            found[ALONE] = self._draw(pair.candidate, pair.baseline)
            self._hold(ALONE, pair.candidate, pair.baseline, found[ALONE], base, flows)
        for mode, made in found.items():
            frames = self.frames.setdefault((mode, pair.candidate, pair.baseline), PairFrames())
            frames.add(self._now[made], self._now[base], (self._light[made], self._light[base]))

    def _draw(self, drawer: str, mover: str) -> Sequence_:
        sequence = self._sequence(drawer, mover)
        if sequence not in self._now:
            frame = play.render_at(self._engines.pipelines[drawer], self._takes[mover], self._step)
            self._now[sequence], self._light[sequence] = frame, luminance(frame)
        return sequence

    def _hold(
        self, mode: str, mix: str, base: str, made: Sequence_, along: Sequence_, flows: dict[Sequence_, Flow]
    ) -> None:
        """Count how `made` hangs together along the flow of `along`."""
        if not self._before or min(self._now[made].shape[:2]) < MIN_SIDE:
            return
        if along not in flows:
            flows[along] = self._meter.between(self._dim[along], self._light[along])
        sums = self.temporal.setdefault((mode, mix, base), TemporalSums())
        sums.add(self._before[made], self._now[made], flows[along])

    def photograph(self) -> None:
        """Keep the step's frame of each mix, and the amplified difference of each pair."""
        for mix in self._mixes:
            self.pictures[mix, ""] = _jpeg(self._now[self._draw(mix, mix)])
        for pair in self._setting.pairs:
            if pair.comparable.frames:
                one, other = (self._now[self._draw(n, n)].astype(np.int16) for n in (pair.candidate, pair.baseline))
                difference = np.clip(np.abs(one - other) * AMPLIFIED, 0, 255).astype(np.uint8)
                self.pictures[pair.candidate, pair.baseline] = _jpeg(difference)


def steps_of(setting: TaskSettings, fps: int) -> int:
    """Base steps, and so frames, of a clip."""
    return max(2, round(setting.seconds * fps))


def _jpeg(frame: Frame, side: int = 256) -> bytes:
    scale = side / max(frame.shape[:2])
    if scale < 1:
        size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return data.tobytes()
