"""A stream in real time: which frames are late, and how much time is left over.

Frame k is due at the end of its interval, (k + 1) / fps after the start, when a screen would need it. After making a
frame, the run sleeps until the next interval begins. Times are absolute: a slow frame does not shift later ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from t2v_edge.util.memory import process_memory
from t2v_edge.util.timing import Latency


@dataclass(frozen=True)
class PaceClock:
    """A run's clock: seconds now, seconds of processor time used, and a way to wait. Tests replace it."""

    now: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep


REAL_TIME = PaceClock()


@dataclass(frozen=True)
class Pace:
    """The result of a run in real time.

    late: frames not done when due. latest_ms: the most that one was late. headroom: the idle share of the time.
    cpu_share: processor time over wall time, 1 for one busy core. mean_ms, frame: how long making a frame took.
    memory_growth_bytes: growth of resident memory after the first second.
    """

    fps: float
    frames: int
    late: int
    latest_ms: float
    headroom: float
    cpu_share: float
    mean_ms: float
    frame: Latency
    memory_growth_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "frame": self.frame.to_json()}


def keep_pace(
    stream: Iterator[object],
    fps: float,
    frames: int,
    clock: PaceClock = REAL_TIME,
    advance: Callable[[], object] = lambda: None,
) -> Pace:
    """Play `frames` frames of `stream` in real time, `fps` a second. advance: called after each."""
    took = np.empty(frames)
    lateness = np.empty(frames)
    begun, cpu = clock.now(), clock.cpu()
    resident = process_memory().resident_bytes
    for index in range(frames):
        wait = begun + index / fps - clock.now()
        if wait > 0:
            clock.sleep(wait)
        start = clock.now()
        next(stream)
        end = clock.now()
        took[index] = end - start
        lateness[index] = end - (begun + (index + 1) / fps)
        if index == min(frames, int(fps)) - 1:  # allocators have settled after a second
            resident = process_memory().resident_bytes
        advance()
    wall = max(clock.now() - begun, frames / fps)
    return Pace(
        fps=fps,
        frames=frames,
        late=int((lateness > 0).sum()),
        latest_ms=1000 * float(max(lateness.max(), 0.0)),
        headroom=1 - float(took.sum()) / wall,
        cpu_share=(clock.cpu() - cpu) / wall,
        mean_ms=1000 * float(took.mean()),
        frame=Latency.of((1000 * took).tolist()),
        memory_growth_bytes=process_memory().resident_bytes - resident,
    )
