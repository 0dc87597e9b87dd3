"""A stream of frames that are made when they are asked for: caption changes, interpolation, frames made ahead."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Optional, Union

from t2v_edge.bundle.tokenizer import TokenizedCaption
from t2v_edge.errors import UsageError
from t2v_edge.frame import Frame
from t2v_edge.play.clock import exact
from t2v_edge.play.condition import Condition
from t2v_edge.play.model import Model
from t2v_edge.play.options import MotionOptions
from t2v_edge.play.rollout import Rollout
from t2v_edge.spec import STAGES
from t2v_edge.util.timing import Stopwatch, StreamStats


@dataclass(frozen=True)
class _TimedCaptions:
    """The field that `StreamOptions` has before those of `MotionOptions`."""

    captions: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class StreamOptions(MotionOptions, _TimedCaptions):
    """What to play, and how; `MotionOptions` describes fps, size, seed, smoothing and blend_steps.

    captions: (seconds, caption) pairs in rising order of time, the first at 0. seconds: how long, None for endless.
    ahead: make the next frames while this one is shown. They are the same frames, and more of them come in a second: a
    GPU copies while it renders, and a processor renders several at once. But a caption that is set shows later, by the
    groups of frames that are on their way: one on a GPU, up to seven on two cores. Raises `UsageError` for values out
    of range.
    """

    seconds: Union[int, float, Fraction, None] = None
    ahead: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        times = [exact(at, "caption time") for at, _ in self.captions]
        if not times or times[0] != 0 or any(b <= a for a, b in zip(times, times[1:])):
            shown = ", ".join(str(at) for at, _ in self.captions) or "none"
            raise UsageError(f"caption times are {shown}; the first must be 0 and each later than the one before")
        if self.seconds is not None and exact(self.seconds, "seconds") <= 0:
            raise UsageError(f"seconds is {self.seconds}, expected more than 0, or None for an endless stream")


@dataclass(frozen=True)
class _Scheduled:
    """A caption that is shown from a base step on, and what normalising and tokenising it took."""

    step: int
    caption: TokenizedCaption
    read_ms: float


@dataclass(frozen=True)
class _Planned:
    """A frame that is being made: its index, and the caption in force at the base step before it."""

    index: int
    generation: int
    caption: str


@dataclass(frozen=True)
class _Group:
    """Frames that are rendered at once. `send_ms`: what sending them off took, which on a processor is rendering."""

    frames: list[_Planned]
    send_ms: float


class FrameStream(Iterator[Frame]):
    """The frames of one stream, one by one. Made by `Pipeline.stream`.

    Iterate it from one thread. Any thread may call `set_caption` meanwhile: the condition blends from the old caption's
    to the new one's over a few base steps, and the recurrent state is kept. The same bundle, engines, options and
    number of threads give the same frames. `frame_count`: None for an endless stream. `size`: (width, height) as shown.
    Raises `CaptionError` for any bad caption of the options, `UsageError` or `EngineError`.
    """

    def __init__(self, model: Model, options: StreamOptions) -> None:
        self.options = options
        self.clock = options.clock(model.manifest.video.fps)
        seconds = options.seconds
        self.frame_count = None if seconds is None else self.clock.frames_in(exact(seconds, "seconds"))
        self._model = model
        # All captions are read now, so that a bad one fails before anything is shown.
        self._schedule = deque(self._read(at, caption) for at, caption in options.captions)
        self.truncated = tuple(item.caption.text for item in self._schedule if item.caption.truncated)
        self._watch = Stopwatch(STAGES)
        self._rollout = Rollout(model, options, self._watch, options.ahead)
        self.size = self._rollout.size
        self._lock = threading.Lock()
        self._pending: Optional[Condition] = None
        self._caption = self._schedule[0].caption.text
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
        self._first_read_ms = self._schedule[0].read_ms

    @property
    def caption(self) -> str:
        """The newest caption, normalised; assigning it is `set_caption`."""
        return self._caption

    @caption.setter
    def caption(self, caption: str) -> None:
        self.set_caption(caption)

    def set_caption(self, caption: str) -> int:
        """Change the caption from the next base step on; the generation that its frames will carry.

        An unchanged caption changes nothing. Of several captions between two base steps the last one counts. The text
        stage runs in the calling thread. Captions that are scheduled for later still come. Raises `CaptionError`.
        """
        scheduled = self._read(0, caption)
        condition = self._encode(scheduled)
        with self._lock:
            if self._generation < 0:  # before the first frame: it takes the place of the first caption
                self._schedule[0] = scheduled
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
        # Frames that are made ahead are also made between two calls.
        self._busy_s = end - self._begun if self.options.ahead else self._busy_s + end - start
        if self._first_frame_ms is None:
            self._first_frame_ms = self._first_read_ms + 1000 * self._busy_s
        return frame

    def close(self) -> None:
        """Free the stream's state; it gives no more frames. A stream that has ended is closed."""
        self._rollout.close()

    def _fill(self) -> None:
        """Send off as many groups of frames as may be on their way, and wait for the oldest. The first goes alone."""
        wanted = self._rollout.slots if self.options.ahead and self._index else 1
        while len(self._groups) < wanted and (self.frame_count is None or self._planned < self.frame_count):
            self._groups.append(self._send())
        group = self._groups.popleft()
        for planned, shown in zip(group.frames, self._rollout.collect(group.send_ms)):
            self._ready.append(
                Frame(shown, planned.index, planned.index, self.clock.time_base, planned.generation, planned.caption)
            )

    def _send(self) -> _Group:
        """Run only the motion steps that the next group of frames needs, and send it off."""
        frames = []
        for _ in range(self._rollout.rows):
            step, share = self.clock.position(self._planned)
            self._rollout.place(step, share, self._before_step)
            frames.append(_Planned(self._planned, *(self._before if share else self._after)))
            self._planned += 1
        return _Group(frames, self._rollout.send())

    def _before_step(self) -> None:
        """Take a caption change that is due, and note the caption in force at the next step."""
        self._take_changes()
        self._before, self._after = self._after, self._in_force

    def _take_changes(self) -> None:
        """Aim the blend at a caption that was set, then at one that is scheduled for this step."""
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is not None:
                self._in_force = (self._generation, pending.caption)
                self._rollout.aim(pending.vector)
        while self._schedule and self._schedule[0].step <= self._rollout.steps:
            condition = self._encode(self._schedule.popleft())
            with self._lock:
                if self._generation >= 0 and condition.caption == self._caption:
                    continue
                self._generation += 1
                self._caption = condition.caption
                self._pending = None
                self._in_force = (self._generation, condition.caption)
                self._rollout.aim(condition.vector)

    def _read(self, at: float, caption: str) -> _Scheduled:
        start = time.perf_counter()
        read = self._model.read(caption)
        read_ms = 1000 * (time.perf_counter() - start)
        return _Scheduled(self.clock.step_of(exact(at, "caption time")), read, read_ms)

    def _encode(self, scheduled: _Scheduled) -> Condition:
        start = time.perf_counter()
        condition = self._model.encode(scheduled.caption)
        if condition.fresh:
            with self._lock:
                self._watch.add("text", scheduled.read_ms + 1000 * (time.perf_counter() - start))
        return condition
