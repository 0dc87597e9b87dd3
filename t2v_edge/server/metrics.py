"""Counters and times of a server as text for Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping

import numpy as np

from t2v_edge.live.stats import SKIPPED, LiveCounts
from t2v_edge.util.memory import process_memory

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WINDOW = 1024
_QUANTILES = (0.5, 0.95, 0.99)
Labels = tuple[tuple[str, str], ...]

_HELP = {
    "t2v_sessions_total": ("counter", "Sessions opened."),
    "t2v_refused_total": ("counter", "Connections and messages refused, by code."),
    "t2v_captions_total": ("counter", "Captions received."),
    "t2v_frames_made_total": ("counter", "Frames rendered."),
    "t2v_frames_sent_total": ("counter", "Frames sent."),
    "t2v_frames_dropped_total": (
        "counter",
        "Frames rendered and not sent, by reason: stale, of an old caption; overtaken by a newer one; unwatched; "
        "unsent, for a slow client or a new caption.",
    ),
    "t2v_frames_missed_total": ("counter", "Frames of the schedule that were never made, for want of time."),
    "t2v_frames_late_total": ("counter", "Frames done more than half a frame after they were due."),
    "t2v_bytes_sent_total": ("counter", "Bytes of frames sent."),
    "t2v_clients": ("gauge", "Sessions open now."),
    "t2v_fps": ("gauge", "Frames sent a second, all clients together, over the last seconds."),
    "t2v_quality_clients": ("gauge", "Sessions by divisor: every so many frames one is made, 1 where all are."),
    "t2v_queue_depth": (
        "gauge",
        "What waits, all clients together: captions for text, rendered frames until they are "
        "due, frames for encode, messages for send.",
    ),
    "t2v_latency_ms": ("summary", "Milliseconds of each stage; caption: from being taken to its first frame sent."),
    "process_resident_memory_bytes": ("gauge", "Memory of this process."),
    "process_cpu_seconds_total": ("counter", "Processor time of this process, user and system."),
}


class Metrics:
    """Counters and recent times of each stage. Any thread may call `time`; the rest belongs to the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[tuple[str, Labels]] = Counter()
        self._times: dict[str, deque[float]] = {}
        self._sums: Counter[str] = Counter()
        self._sums_ms: dict[str, float] = {}
        for name in ("t2v_sessions_total", "t2v_captions_total", "t2v_frames_sent_total", "t2v_bytes_sent_total"):
            self._counters[name, ()] = 0  # a counter of 0 is shown as well

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self._counters[name, tuple(labels.items())] += amount

    def value(self, name: str, **labels: str) -> int:
        return self._counters[name, tuple(labels.items())]

    def time(self, stage: str, elapsed_ms: float) -> None:
        with self._lock:
            self._times.setdefault(stage, deque(maxlen=_WINDOW)).append(elapsed_ms)
            self._sums[stage] += 1
            self._sums_ms[stage] = self._sums_ms.get(stage, 0.0) + elapsed_ms

    def to_text(self, gauges: Mapping[tuple[str, Labels], float]) -> str:
        """All metrics as text. Quantiles are of the last 1,024 times.

        gauges: (name, labels) -> present value.
        """
        samples: dict[str, list[str]] = {}
        for values in (self._counters, gauges):
            for (name, labels), value in values.items():
                number = f"{value:.10g}" if isinstance(value, float) else value
                samples.setdefault(name, []).append(f"{name}{_labels(labels)} {number}")
        with self._lock:
            windows = {
                stage: (list(times), self._sums_ms[stage], self._sums[stage]) for stage, times in self._times.items()
            }
        for stage, (times, sum_ms, count) in windows.items():
            lines = samples.setdefault("t2v_latency_ms", [])
            for quantile, value in zip(_QUANTILES, np.quantile(np.asarray(times), _QUANTILES)):
                lines.append(f"t2v_latency_ms{_labels((('stage', stage), ('quantile', str(quantile))))} {value:.3f}")
            lines.append(f"t2v_latency_ms_sum{_labels((('stage', stage),))} {sum_ms:.3f}")
            lines.append(f"t2v_latency_ms_count{_labels((('stage', stage),))} {count}")
        text = []
        for name, (kind, meaning) in _HELP.items():
            if name in samples:
                text += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *samples[name]]
        return "\n".join(text) + "\n"


def frame_gauges(counts: LiveCounts, unsent: int) -> dict[tuple[str, Labels], float]:
    """Counts of frames. unsent: frames that the streams gave and that were not sent."""
    dropped = {**{reason: count for reason, count in counts.dropped.items() if reason != SKIPPED}, "unsent": unsent}
    return {
        ("t2v_frames_made_total", ()): counts.rendered,
        ("t2v_frames_late_total", ()): counts.late,
        ("t2v_frames_missed_total", ()): counts.dropped[SKIPPED],
        **{("t2v_frames_dropped_total", (("reason", reason),)): count for reason, count in dropped.items()},
    }


def process_gauges() -> dict[tuple[str, Labels], float]:
    """This process's memory and processor time, under Prometheus's usual names."""
    return {
        ("process_resident_memory_bytes", ()): process_memory().resident_bytes,
        ("process_cpu_seconds_total", ()): round(time.process_time(), 3),
    }


class EventRate:
    """A meter of events a second over the last `window_s` seconds."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._times: deque[float] = deque()
        self._start_s: float | None = None

    def add(self, now_s: float) -> None:
        self._times.append(now_s)
        self._trim(now_s)

    def per_s(self, now_s: float) -> float:
        self._trim(now_s)
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(1e-3, self._times[-1] - self._times[0])

    def _trim(self, now_s: float) -> None:
        while self._times and self._times[0] < now_s - self._window_s:
            self._times.popleft()


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    # Values are codes and stage names of this package, so nothing needs an escape.
    text = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{text}}}" if text else ""
