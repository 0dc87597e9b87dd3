"""How long the stages of a stream take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

WINDOW = 4096


@dataclass(frozen=True)
class Latency:
    """How long a thing took, in milliseconds: how often it was done, and percentiles of the times kept.

    jitter_ms: the 95th percentile of how far a time is from the one before it: what a viewer sees, where a slow drift
    goes unseen (RFC 3550 averages such differences). None where there are too few times.
    """

    count: int
    median_ms: Optional[float] = None
    p95_ms: Optional[float] = None
    p99_ms: Optional[float] = None
    max_ms: Optional[float] = None
    jitter_ms: Optional[float] = None

    @classmethod
    def of(cls, times_ms: Sequence[float], count: Optional[int] = None) -> Latency:
        """Of times in the order they were taken; `count` where more were taken than are kept. Interpolates linearly."""
        done = len(times_ms) if count is None else count
        if not times_ms:
            return cls(done)
        times = np.asarray(times_ms, np.float64)
        median, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
        jitter = float(np.percentile(np.abs(np.diff(times)), 95)) if len(times) > 1 else None
        return cls(done, median, p95, p99, float(times.max()), jitter)

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
            "max_ms": self.max_ms,
            "jitter_ms": self.jitter_ms,
        }


@dataclass(frozen=True)
class StreamStats:
    """A stream's own time, without what its consumer spends between frames; that counts where frames are made ahead.

    fps: frames made a second of that time. first_frame_ms: from the first caption's tokens to the first pixels.
    motion_steps: base steps run. stages: latency by stage, percentiles of the last `WINDOW` runs; of frames made ahead,
    render's is what sending them off and waiting for them took.
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
    """Collects durations of named stages, in a bounded window each. tell: is told each as well, (stage, milliseconds),
    in the thread that took it."""

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
