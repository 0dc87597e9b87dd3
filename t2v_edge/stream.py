"""A live stream of frames: recurrent state, caption changes, interpolation."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy.typing as npt

from t2v_edge.clock import Blend, Clock, Smoother, Vector, exact, mix
from t2v_edge.draws import MAX_SEED, Draws
from t2v_edge.errors import UsageError
from t2v_edge.frame import Frame
from t2v_edge.spec import STAGES
from t2v_edge.timing import Stopwatch, StreamStats
from t2v_edge.tokenizer import normalise

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
    blends, None for the model's own. Raises `UsageError` for values out of range.
    """

    captions: tuple[tuple[float, str], ...]
    fps: Union[int, float, Fraction, str, None] = None
    seconds: Union[int, float, Fraction, None] = None
    seed: int = 0
    size: Optional[tuple[int, int]] = None
    smoothing: float = 0.0
    blend_steps: Optional[int] = None

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


@dataclass(frozen=True, eq=False)
class _Step:
    """What one base step made, and for which caption."""

    motion: Vector
    condition: Vector
    generation: int
    caption: str


class FrameStream(Iterator[Frame]):
    """Frames, one by one, of one stream. Made by `Pipeline.stream`.

    Iterate it from one thread. `set_caption` may be called from any thread while it runs: the condition blends from
    the old caption's to the new one's over a few base steps, and the recurrent state is carried on. The same bundle,
    engine, options and thread count give the same frames. `frame_count` is None for an endless stream; `size` is
    (width, height) as shown.
    """

    def __init__(self, pipeline: Pipeline, options: StreamOptions) -> None:
        video, stages = pipeline.manifest.video, pipeline.manifest.stages
        base_fps = Fraction(video.fps)
        self.options = options
        self.clock = Clock(base_fps, base_fps if options.fps is None else exact(options.fps, "fps"))
        self.size = options.size or (video.width, video.height)
        seconds = options.seconds
        self.frame_count = None if seconds is None else self.clock.frames_in(exact(seconds, "seconds"))
        self._pipeline = pipeline
        self._resize = _resizer((video.width, video.height), self.size)
        self._draws = Draws(stages["motion"], stages["render"], options.seed)
        self._blend = Blend(video.blend_steps if options.blend_steps is None else options.blend_steps)
        self._smooth = Smoother(options.smoothing)
        self._states = stages["motion"].states
        self._state: dict[str, npt.NDArray[Any]] = dict(self._draws.states)
        # All captions are checked now, so that a bad one fails before anything is shown.
        self._schedule = deque((self.clock.step_of(exact(at, "caption time")), normalise(caption))
                               for at, caption in options.captions)
        self._lock = threading.Lock()
        self._pending: Optional[Condition] = None
        self._caption = self._schedule[0][1]
        self._generation = -1
        self._in_force = (0, self._caption)
        self._before: Optional[_Step] = None
        self._after: Optional[_Step] = None
        self._steps = 0
        self._index = 0
        self._watch = Stopwatch(STAGES)
        self._busy_s = 0.0
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
        return StreamStats(self._index, self._steps, fps, self._first_frame_ms, stages)

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> Frame:
        if self.frame_count is not None and self._index >= self.frame_count:
            raise StopIteration
        start = time.perf_counter()
        frame = self._make(self._index)
        self._index += 1
        self._busy_s += time.perf_counter() - start
        if self._first_frame_ms is None:
            self._first_frame_ms = 1000 * self._busy_s
        return frame

    def _make(self, index: int) -> Frame:
        """Run the motion steps that frame `index` needs and no more, interpolate, and render once."""
        step, share = self.clock.position(index)
        wanted = step + 2 if share else step + 1
        while self._steps < wanted:
            self._before, self._after = self._after, self._advance()
        # Positions only grow, so the newest step is `step` itself, or `step + 1` where there is a share of it.
        before, after = (self._before if share else self._after), self._after
        if before is None or after is None:
            raise RuntimeError("a frame was asked for before its motion step")
        motion = mix(before.motion, after.motion, float(share))
        condition = mix(before.condition, after.condition, float(share))
        feeds = {"motion": motion, "condition": condition, **self._draws.render}
        with self._watch.time("render"):
            pixels = self._pipeline.run("render", feeds)["frame"][0]
        if self._resize is not None:
            pixels = self._resize(pixels)
        return Frame(pixels, index, index, self.clock.time_base, before.generation, before.caption)

    def _advance(self) -> _Step:
        """One base step: take a caption change that is due, move the condition, step the motion."""
        self._take_changes()
        condition = self._blend.advance()
        feeds = {"condition": condition, **self._draws.motion, **self._draws.step(), **self._state}
        with self._watch.time("motion"):
            results = self._pipeline.run("motion", feeds)
        self._state = {state.input: results[state.output] for state in self._states}
        self._steps += 1
        return _Step(self._smooth(results["motion"]), condition, *self._in_force)

    def _take_changes(self) -> None:
        """Aim the blend at a caption that was set, or one that is scheduled for this step, which comes after it."""
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is not None:
                self._in_force = (self._generation, pending.caption)
                self._blend.retarget(pending.vector)
        while self._schedule and self._schedule[0][0] <= self._steps:
            condition = self._encode(self._schedule.popleft()[1])
            with self._lock:
                if self._generation >= 0 and condition.caption == self._caption:
                    continue
                self._generation += 1
                self._caption = condition.caption
                self._pending = None
                self._in_force = (self._generation, condition.caption)
                self._blend.retarget(condition.vector)

    def _encode(self, caption: str) -> Condition:
        start = time.perf_counter()
        fresh = not self._pipeline.is_encoded(caption)
        condition = self._pipeline.encode(caption)
        if fresh:
            with self._lock:
                self._watch.add("text", 1000 * (time.perf_counter() - start))
        return condition


def _resizer(made: tuple[int, int], shown: tuple[int, int]) -> Optional[Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]:
    """A function from frames as made to frames as shown; None where they are the same."""
    if made == shown:
        return None
    try:
        from t2v_edge.resize import Resizer
    except ImportError as error:
        raise UsageError("another size than the model's own needs OpenCV: pip install 't2v-edge[video]'") from error
    return Resizer(made, shown)
