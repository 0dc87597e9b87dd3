"""Times of a stream's stages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Callable, Optional

import numpy as np

WINDOW = 4096


@dataclass(frozen=True)
class Latency:
    """Percentiles of times, in milliseconds. None if there are too few times.

    count: how many times were taken. Percentiles may be of fewer, the kept ones.
    jitter_ms: the 95th percentile of the difference between one time and the next. A viewer sees this, but not a slow
        drift (RFC 3550 averages such differences).
    """

    count: int
    median_ms: Optional[float] = None
    p95_ms: Optional[float] = None
    p99_ms: Optional[float] = None
    max_ms: Optional[float] = None
    jitter_ms: Optional[float] = None

    @classmethod
    def of(cls, times_ms: Sequence[float], count: Optional[int] = None) -> Latency:
        """The latency of times in order. count: if more were taken than are kept. Percentiles interpolate linearly."""
        done = len(times_ms) if count is None else count
        if not times_ms:
            return cls(done)
        times = np.asarray(times_ms, np.float64)
        median, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
        jitter = float(np.percentile(np.abs(np.diff(times)), 95)) if len(times) > 1 else None
        return cls(done, median, p95, p99, float(times.max()), jitter)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StreamStats:
    """Figures of a stream.

    They leave out the time that its consumer spends between frames, unless frames are made ahead.

    motion_steps: base steps run.
    fps: frames made a second.
    first_frame_ms: from the first caption's tokens to the first pixels.
    stages: latency by stage, of the last `WINDOW` runs. For frames made ahead, render's is the time to start them and
        to wait for them.
    """

    frames: int
    motion_steps: int
    fps: Optional[float]
    first_frame_ms: Optional[float]
    stages: Mapping[str, Latency]

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": self.frames,
            "motion_steps": self.motion_steps,
            "fps": self.fps,
            "caption_to_first_frame_ms": self.first_frame_ms,
            "stages": {stage: latency.to_json() for stage, latency in self.stages.items()},
        }


class Stopwatch:
    """A collector of the durations of named stages, with a bounded window for each.

    tell: is called with each (stage, milliseconds), in the thread that took it.
    """

    tell: Optional[Callable[[str, float], None]] = None

    def __init__(self, stages: tuple[str, ...]) -> None:
        self._windows: dict[str, deque[float]] = {stage: deque(maxlen=WINDOW) for stage in stages}
        self._counts = dict.fromkeys(stages, 0)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(stage, 1000 * (time.perf_counter() - start))

    def add(self, stage: str, elapsed_ms: float) -> None:
        self._windows[stage].append(elapsed_ms)
        self._counts[stage] += 1
        tell = self.tell
        if tell is not None:
            tell(stage, elapsed_ms)

    def latency(self, stage: str) -> Latency:
        return Latency.of(list(self._windows[stage]), self._counts[stage])
