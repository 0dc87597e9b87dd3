"""The work of a live stream's render thread: requests become frames, and motion keeps real time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Optional

from t2v_edge.frame import Frame
from t2v_edge.live.options import LiveOptions
from t2v_edge.live.pacer import MotionTimeline
from t2v_edge.play.clock import Clock
from t2v_edge.play.condition import Condition
from t2v_edge.play.model import Model
from t2v_edge.play.rollout import Rollout
from t2v_edge.util.timing import Stopwatch


@dataclass(frozen=True)
class FrameRequest:
    """Frames to make at once. indices: their numbers, `stride` apart. skipped: frames that were missed before them.

    generation, caption: what the frames carry. condition: a new one to blend to, None for the same as before. seed: of
    a new run, None to continue. restarted: the schedule starts again at these frames. unjudged: being late says nothing
    about the device, because the caption changed or the queue was full.
    """

    indices: tuple[int, ...]
    stride: int
    skipped: int
    generation: int
    caption: str
    condition: Optional[Condition]
    seed: Optional[int]
    restarted: bool
    unjudged: bool


class Maker:
    """Makes the frames of one live stream. Use it from one thread.

    Motion follows the numbers of frames, so it is as fast as ever when some are missed. After a stall past the bound it
    continues from where it stood. The first frame of a new caption lies behind a step under it. The rest of the steps
    before it is passed over: less than one step, or more with frames made ahead.
    """

    def __init__(self, model: Model, options: LiveOptions, clock: Clock, watch: Stopwatch) -> None:
        self._model, self._options, self._watch, self._clock = model, options, watch, clock
        self._rollout = Rollout(model, options, watch)
        self._timeline = MotionTimeline(clock.base_fps / clock.fps)
        self._position = Fraction(0)
        self.size, self.rows = self._rollout.size, self._rollout.rows

    @property
    def steps(self) -> int:
        """Base steps run since the start or the last new seed."""
        return self._rollout.steps

    def make(self, request: FrameRequest) -> list[Frame]:
        """The frames of a request. Raises `EngineError`."""
        if request.seed is not None:
            self._rollout.close()
            self._options = replace(self._options, seed=request.seed)
            self._rollout = Rollout(self._model, self._options, self._watch)
        if request.condition is not None:
            self._rollout.aim(request.condition.vector)
        self._steer(request)
        for index in request.indices:
            self._position = self._timeline.at(index)
            step = math.floor(self._position)
            self._rollout.place(step, self._position - step)
        pixels = self._rollout.collect(self._rollout.send())
        return [
            Frame(shown, index, index, self._clock.time_base, request.generation, request.caption)
            for index, shown in zip(request.indices, pixels)
        ]

    def close(self) -> None:
        self._rollout.close()

    def _steer(self, request: FrameRequest) -> None:
        """Move the motion's timeline where it must not follow the numbers of frames."""
        first, steps = request.indices[0], self._rollout.steps
        if steps == 0:
            self._timeline.restart(first, Fraction(0))
            return
        stride = request.stride * self._timeline.rate
        position = wanted = self._timeline.at(first)
        if request.restarted:
            position = min(position, self._position + stride)
        if request.condition is not None:  # the newest step was made before it
            position = max(position, steps - 1 + min(stride, Fraction(1)))
        if position != wanted:
            self._timeline.restart(first, position)
