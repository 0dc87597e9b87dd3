"""Statistics of a live stream: frames shown, dropped and late, rates and latencies."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from t2v_edge.util.timing import WINDOW, Latency

STALE, OVERTAKEN, SKIPPED, UNWATCHED = "stale", "overtaken", "skipped", "unwatched"
REASONS = (STALE, OVERTAKEN, SKIPPED, UNWATCHED)
RATE_FRAMES = 64


@dataclass(frozen=True)
class LiveStats:
    """Counts since the start.

    shown: frames given to the consumer. rendered: frames made. dropped: frames by reason. ``stale``: made for an old
    caption. ``overtaken``: made, but a newer one was due. ``unwatched``: made, but nobody came. ``skipped``: missed and
    never made. late: frames done more than half a frame after they were due. anchors: restarts of the schedule after a
    stall. fps: frames shown a second, of the newest `RATE_FRAMES` or since the stream last stood still; None for too
    few. switch: from the call of `set_caption` to its first frame at the consumer, of captions that were shown. queued:
    frames that wait. level, divisor: of quality; every divisor-th frame is made. motion_steps: base steps run since the
    start or the last reset. stages: latency by stage.
    """

    shown: int
    rendered: int
    dropped: Mapping[str, int]
    late: int
    anchors: int
    fps: Optional[float]
    switch: Latency
    queued: int
    generation: int
    level: int
    divisor: int
    motion_steps: int
    stages: Mapping[str, Latency]

    def to_json(self) -> dict[str, Any]:
        stages = {stage: latency.to_json() for stage, latency in self.stages.items()}
        return {**vars(self), "dropped": dict(self.dropped), "switch": self.switch.to_json(), "stages": stages}


@dataclass(frozen=True)
class LiveCounts:
    """The part of `LiveStats` that costs little: counts since the start, frames that wait, the divisor in force."""

    rendered: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    late: int = 0
    queued: int = 0
    divisor: int = 1

    def after(self, before: LiveCounts) -> LiveCounts:
        """The sum of these counts and of the streams before."""
        dropped = {reason: self.dropped[reason] + before.dropped[reason] for reason in REASONS}
        return LiveCounts(self.rendered + before.rendered, dropped, self.late + before.late, self.queued, self.divisor)


class FrameCounts:
    """The counts behind `LiveStats`. Callers hold the stream's lock."""

    def __init__(self) -> None:
        self.shown = self.rendered = self.late = self.anchors = 0
        self.dropped = dict.fromkeys(REASONS, 0)
        self._times: deque[float] = deque(maxlen=RATE_FRAMES)
        self._switches: deque[float] = deque(maxlen=WINDOW)
        self._switched = 0
        self._asked: Optional[tuple[int, float]] = None

    def ask(self, generation: int, at_s: float) -> None:
        """Note a caption that was set at `at_s`; its frames carry `generation`."""
        self._asked = (generation, at_s)

    def show(self, generation: int, at_s: float) -> None:
        """Note a frame that the consumer got."""
        self.shown += 1
        self._times.append(at_s)
        if self._asked is not None and self._asked[0] == generation:
            self._switches.append(1000 * (at_s - self._asked[1]))
            self._switched += 1
            self._asked = None

    def stand_still(self) -> None:
        """Forget times: no rate and no latency spans a pause."""
        self._times.clear()
        self._asked = None

    @property
    def fps(self) -> Optional[float]:
        span = self._times[-1] - self._times[0] if len(self._times) > 1 else 0.0
        return (len(self._times) - 1) / span if span > 0 else None

    @property
    def switch(self) -> Latency:
        return Latency.of(list(self._switches), self._switched)
