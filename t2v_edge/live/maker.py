"""What the render thread of a live stream does: it turns orders into frames, and keeps the motion in real time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Optional

from t2v_edge.frame import Frame
from t2v_edge.live.options import LiveOptions
from t2v_edge.live.pacer import MotionTimeline
from t2v_edge.play.clock import Clock
from t2v_edge.play.rollout import Rollout, RolloutOptions
from t2v_edge.util.timing import Stopwatch

if TYPE_CHECKING:
    from t2v_edge.pipeline import Condition, Pipeline


@dataclass(frozen=True)
class FrameRequest:
    """Frames to be made at once. indices: their numbers, `stride` apart; skipped: frames missed before them.

    generation, caption: what they carry. condition: to blend to, where it is another than before. seed: to begin a new
    run with, None to go on. anew: whether the schedule is taken up anew. excused: whether being late tells nothing of
    the device, because the caption changed or the queue was full.
    """

    indices: tuple[int, ...]
    stride: int
    skipped: int
    generation: int
    caption: str
    condition: Optional[Condition]
    seed: Optional[int]
    anew: bool
    excused: bool


class Maker:
    """Makes the frames of one live stream. Use it from one thread.

    Motion follows the numbers of frames: where some are missed it goes on as fast as ever. After a stall past the bound
    it goes on from where it stood. A frame of a new caption shows something of a step under it: what is left of steps
    that were made before is passed over, less than one step, and more only with frames made ahead.
    """

    def __init__(self, pipeline: Pipeline, options: LiveOptions, clock: Clock, watch: Stopwatch) -> None:
        self._pipeline, self._watch, self._clock = pipeline, watch, clock
        self._options = RolloutOptions(options.seed, options.size, options.smoothing, options.blend_steps)
        self._rollout = Rollout(pipeline, self._options, watch)
        self._course = MotionTimeline(clock.base_fps / clock.fps)
        self._position = Fraction(0)
        self.size, self.rows = self._rollout.size, self._rollout.rows

    @property
    def steps(self) -> int:
        """Base steps run since the start or the last new seed."""
        return self._rollout.steps

    def make(self, order: FrameRequest) -> list[Frame]:
        """The frames of an order. Raises `EngineError`."""
        if order.seed is not None:
            self._rollout.close()
            self._options = replace(self._options, seed=order.seed)
            self._rollout = Rollout(self._pipeline, self._options, self._watch)
        if order.condition is not None:
            self._rollout.aim(order.condition.vector)
        self._steer(order)
        for index in order.indices:
            self._position = self._course.at(index)
            step = math.floor(self._position)
            self._rollout.place(step, self._position - step)
        pixels = self._rollout.collect(self._rollout.send())
        return [
            Frame(shown, index, index, self._clock.time_base, order.generation, order.caption)
            for index, shown in zip(order.indices, pixels)
        ]

    def close(self) -> None:
        self._rollout.close()

    def _steer(self, order: FrameRequest) -> None:
        """Begin the motion's course anew where it must not follow the numbers of frames."""
        first, steps = order.indices[0], self._rollout.steps
        if steps == 0:
            self._course.restart(first, Fraction(0))
            return
        stride = order.stride * self._course.rate
        position = wanted = self._course.at(first)
        if order.anew:
            position = min(position, self._position + stride)
        if order.condition is not None:  # the newest step was made before it
            position = max(position, steps - 1 + min(stride, Fraction(1)))
        if position != wanted:
            self._course.restart(first, position)
