"""A live stream of frames: recurrent state, caption changes, interpolation."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Optional, Union

from t2v_edge.bundle.draws import MAX_SEED
from t2v_edge.bundle.tokenizer import normalise
from t2v_edge.errors import UsageError
from t2v_edge.frame import Frame
from t2v_edge.play.clock import Clock, exact
from t2v_edge.play.rollout import Rollout, RolloutOptions
from t2v_edge.spec import STAGES
from t2v_edge.util.timing import Stopwatch, StreamStats

if TYPE_CHECKING:
    from t2v_edge.pipeline import Condition, Pipeline

MAX_SIDE = 8192


@dataclass(frozen=True)
class StreamOptions:
    """What to play.

    captions: (seconds, caption) pairs in rising order of time, the first at 0. fps: shown frames a second, any
    positive number, a fraction as text ("30000/1001") or None for the model's own. seconds: how long, None for
    endless. seed: of every random draw. size: (width, height) of the frames shown, None for the model's own.
    smoothing: of motion, 0 to below 1, see `clock.Smoother`. blend_steps: base frames over which a caption change
    blends, None for the model's own. ahead: whether the frames after the one that is given are already being made. More
    come in a second, and the same ones: on a GPU copying then overlaps rendering, on a processor some engines make
    frames beside each other. But a caption that is set shows later, by as many groups of frames as are on their way
    besides the one that is waited for: one on a GPU, five or seven on two cores. Raises `UsageError` for values out of
    range.
    """

    captions: tuple[tuple[float, str], ...]
    fps: Union[int, float, Fraction, str, None] = None
    seconds: Union[int, float, Fraction, None] = None
    seed: int = 0
    size: Optional[tuple[int, int]] = None
    smoothing: float = 0.0
    blend_steps: Optional[int] = None
    ahead: bool = False

    def __post_init__(self) -> None:
        times = [exact(at, "caption time") for at, _ in self.captions]
        if not times or times[0] != 0 or any(b <= a for a, b in zip(times, times[1:])):
            shown = ", ".join(str(at) for at, _ in self.captions) or "none"
            raise UsageError(f"caption times are {shown}; the first must be 0 and each later than the one before")
        if self.seconds is not None and exact(self.seconds, "seconds") <= 0:
            raise UsageError(f"seconds is {self.seconds}, expected more than 0, or None for an endless stream")
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise UsageError(f"size is {self.size[0]}x{self.size[1]}, expected 1 to {MAX_SIDE} pixels a side")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed is {self.seed}, expected 0 to {MAX_SEED}")
        if not 0.0 <= self.smoothing < 1.0:
            raise UsageError(f"smoothing is {self.smoothing}, expected 0 (none) up to but not including 1")
        if self.blend_steps is not None and self.blend_steps < 0:
            raise UsageError(f"blend_steps is {self.blend_steps}, expected 0 or more")


@dataclass(frozen=True)
class _Planned:
    """A frame that is being made: its index, and the caption in force at the base step before it."""

    index: int
    generation: int
    caption: str


@dataclass(frozen=True)
class _Group:
    """Frames that are rendered at once. `send_ms`: what sending them off took.

    On a processor that is rendering them; on a GPU, rendering is what is then waited for.
    """

    frames: list[_Planned]
    send_ms: float


class FrameStream(Iterator[Frame]):
    """Frames, one by one, of one stream. Made by `Pipeline.stream`.

    Iterate it from one thread. `set_caption` may be called from any thread while it runs: the condition blends from
    the old caption's to the new one's over a few base steps, and the recurrent state is carried on. The same bundle,
    engine, options and thread count give the same frames. `frame_count` is None for an endless stream; `size` is
    (width, height) as shown.
    """

    def __init__(self, pipeline: Pipeline, options: StreamOptions) -> None:
        base_fps = Fraction(pipeline.manifest.video.fps)
        self.options = options
        self.clock = Clock(base_fps, base_fps if options.fps is None else exact(options.fps, "fps"))
        seconds = options.seconds
        self.frame_count = None if seconds is None else self.clock.frames_in(exact(seconds, "seconds"))
        self._pipeline = pipeline
        self._watch = Stopwatch(STAGES)
        self._rollout = Rollout(
            pipeline,
            RolloutOptions(options.seed, options.size, options.smoothing, options.blend_steps, options.ahead),
            self._watch,
        )
        self.size = self._rollout.size
        # All captions are checked now, so that a bad one fails before anything is shown.
        self._schedule = deque(
            (self.clock.step_of(exact(at, "caption time")), normalise(caption)) for at, caption in options.captions
        )
        self._lock = threading.Lock()
        self._pending: Optional[Condition] = None
        self._caption = self._schedule[0][1]
        self._generation = -1
        self._in_force = (0, self._caption)
        # captions in force at the two newest steps
        self._before = self._after = self._in_force
        self._groups: deque[_Group] = deque()
        self._ready: deque[Frame] = deque()
        self._planned = 0
        self._index = 0
        self._busy_s = 0.0
        self._begun: Optional[float] = None
        self._first_frame_ms: Optional[float] = None

    @property
    def caption(self) -> str:
        """The newest caption, normalised; assigning it is `set_caption`."""
        return self._caption

    @caption.setter
    def caption(self, caption: str) -> None:
        self.set_caption(caption)

    def set_caption(self, caption: str) -> int:
        """Change the caption from the next base step on; returns the generation that its frames will carry.

        An unchanged caption changes nothing; of several set between two base steps the last one counts. The text
        stage runs in the calling thread. Captions scheduled for later still come. Raises `CaptionError`.
        """
        condition = self._encode(caption)
        with self._lock:
            if self._generation < 0:  # before the first frame: it takes the place of the first caption
                self._schedule[0] = (0, condition.caption)
                self._caption = condition.caption
                return 0
            if condition.caption != self._caption:
                self._caption = condition.caption
                self._generation += 1
                self._pending = condition
            return self._generation

    @property
    def stats(self) -> StreamStats:
        """Timings up to now."""
        fps = self._index / self._busy_s if self._busy_s > 0 else None
        stages = {stage: self._watch.latency(stage) for stage in STAGES}
        return StreamStats(self._index, self._rollout.steps, fps, self._first_frame_ms, stages)

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> Frame:
        if self.frame_count is not None and self._index >= self.frame_count:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        if not self._ready:
            self._fill()
        frame = self._ready.popleft()
        self._index += 1
        end = time.perf_counter()
        if self._begun is None:
            self._begun = start
        # Of frames made ahead the time between two calls is part of their making.
        self._busy_s = end - self._begun if self.options.ahead else self._busy_s + end - start
        if self._first_frame_ms is None:
            self._first_frame_ms = 1000 * self._busy_s
        return frame

    def close(self) -> None:
        """Free what the stream holds on a GPU; it gives no more frames. A stream that has ended is closed."""
        self._rollout.close()

    def _fill(self) -> None:
        """Send off as many groups of frames as may be on their way, and wait for the oldest; the first goes alone."""
        wanted = self._rollout.slots if self.options.ahead and self._index else 1
        while len(self._groups) < wanted and (self.frame_count is None or self._planned < self.frame_count):
            self._groups.append(self._send())
        group = self._groups.popleft()
        for planned, shown in zip(group.frames, self._rollout.collect(group.send_ms)):
            self._ready.append(
                Frame(shown, planned.index, planned.index, self.clock.time_base, planned.generation, planned.caption)
            )

    def _send(self) -> _Group:
        """Run the motion steps that the next group of frames needs and no more, and send it off."""
        frames = []
        for _ in range(self._rollout.rows):
            step, share = self.clock.position(self._planned)
            self._rollout.place(step, share, self._before_step)
            frames.append(_Planned(self._planned, *(self._before if share else self._after)))
            self._planned += 1
        return _Group(frames, self._rollout.send())

    def _before_step(self) -> None:
        """Take a caption change that is due, and note the caption in force at the step that comes."""
        self._take_changes()
        self._before, self._after = self._after, self._in_force

    def _take_changes(self) -> None:
        """Aim the blend at a caption that was set, or one that is scheduled for this step, which comes after it."""
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is not None:
                self._in_force = (self._generation, pending.caption)
                self._rollout.aim(pending.vector)
        while self._schedule and self._schedule[0][0] <= self._rollout.steps:
            condition = self._encode(self._schedule.popleft()[1])
            with self._lock:
                if self._generation >= 0 and condition.caption == self._caption:
                    continue
                self._generation += 1
                self._caption = condition.caption
                self._pending = None
                self._in_force = (self._generation, condition.caption)
                self._rollout.aim(condition.vector)

    def _encode(self, caption: str) -> Condition:
        start = time.perf_counter()
        fresh = not self._pipeline.is_encoded(caption)
        condition = self._pipeline.encode(caption)
        if fresh:
            with self._lock:
                self._watch.add("text", 1000 * (time.perf_counter() - start))
        return condition
