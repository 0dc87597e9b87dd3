"""How long the stages of a stream take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

WINDOW = 4096


@dataclass(frozen=True)
class Latency:
    """Runs of one stage: how many, and the median and 95th percentile of the last `WINDOW`, in milliseconds."""

    count: int
    median_ms: Optional[float]
    p95_ms: Optional[float]

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "median_ms": self.median_ms, "p95_ms": self.p95_ms}


@dataclass(frozen=True)
class StreamStats:
    """A stream's own time, without what its consumer spends between frames.

    fps: frames made a second of that time. first_frame_ms: from the first caption's tokens to the first pixels.
    motion_steps: base steps run. stages: latency by stage.
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
    """Collects durations of named stages, in a bounded window each."""

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

    def latency(self, stage: str) -> Latency:
        window = list(self._windows[stage])
        if not window:
            return Latency(0, None, None)
        return Latency(self._counts[stage], float(np.median(window)), float(np.percentile(window, 95)))
