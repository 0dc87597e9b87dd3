"""The state of a live stream and its rules: what is made next, what the consumer gets, what is dropped and why.

It has no threads, no waits and no clock. Times are arguments, so a test can play the render thread and the consumer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Optional, Union

from t2v_edge.frame import Frame
from t2v_edge.live.maker import FrameRequest
from t2v_edge.live.options import BLOCK, LATEST, LiveOptions
from t2v_edge.live.pacer import FrameSlot, LeadTime, Pacer
from t2v_edge.live.quality import Quality, QualityWindow
from t2v_edge.live.stats import OVERTAKEN, SKIPPED, STALE, UNWATCHED, FrameCounts
from t2v_edge.play.condition import Condition

TRIES = 2
"""How often a frame is made for one moment, if the caption changes while it is made."""
WINDOW_S, WINDOW_FRAMES = 1.0, 5
"""Quality is decided after that many seconds and that many frames."""


@dataclass(frozen=True)
class Pending:
    """There is nothing to do now. until_s: when to look again; None: after a change."""

    until_s: Optional[float]


class LiveCore:
    """The state of one live stream. Callers hold the stream's lock. rows: frames that are made at once, at most."""

    def __init__(self, options: LiveOptions, fps: Fraction, rows: int, now_s: float) -> None:
        self.options = options
        self.pacer = Pacer(fps, options.bound_s)
        self.quality = Quality(fps)
        self.counts = FrameCounts()
        self.queue: deque[Frame] = deque()
        self.generation = -1
        self.condition: Optional[Condition] = None
        self._rows = min(rows, options.ahead + 1)
        self._full = options.queue + options.ahead
        self._lead = LeadTime()
        self._seed = options.seed
        self._to_aim = self._to_restart = self._was_full = False
        self._paused = self._unwatched = False
        self._tries = 0
        self._taken = -1
        self._consumers = 0
        self._seen_s = now_s
        self._new_window(now_s)

    # Control.

    def aim(self, condition: Condition, asked_s: float, now_s: float) -> bool:
        """Take a caption that was set at `asked_s`; False for an unchanged one."""
        if self.condition is not None and condition.caption == self.condition.caption:
            return False
        if self.condition is None:
            self._seen_s = now_s
        self.condition, self._to_aim = condition, True
        self._next_generation(now_s)
        if self.pacer.running and self.generation > 0:
            self.counts.ask(self.generation, asked_s)
        return True

    def pause(self, paused: bool, now_s: float) -> None:
        self._paused = paused
        self._settle(now_s)

    def reset(self, seed: Optional[int], now_s: float) -> None:
        """Start a new motion, with another seed or the same."""
        self._seed = self._seed if seed is None else seed
        self._to_restart = True
        if self.condition is not None:
            self._next_generation(now_s)

    def arrive(self, now_s: float) -> bool:
        """Note a consumer that waits for a frame; True if that wakes the stream."""
        self._consumers += 1
        woken, self._unwatched = self._unwatched, False
        if woken:
            self._settle(now_s)
        return woken

    def leave(self, now_s: float) -> None:
        self._consumers -= 1
        self._seen_s = now_s

    def abandon(self) -> None:
        """Drop the frames that wait, because nobody comes for them."""
        self.counts.dropped[UNWATCHED] += len(self.queue)
        self.queue.clear()

    # The consumer's side.

    def take(self, now_s: float) -> Union[Frame, Pending]:
        """The next frame, if it is due."""
        queue = self.queue
        if not queue or not self.pacer.running:
            return Pending(None)
        due_s = self.pacer.due(queue[0].index)
        if due_s > now_s:
            return Pending(due_s)
        if self.options.policy == LATEST:
            while len(queue) > 1 and self.pacer.due(queue[1].index) <= now_s:
                self._drop_oldest()
        frame = queue.popleft()
        self._taken = frame.index
        self.counts.show(frame.generation, now_s)
        return frame

    # The render thread's side.

    def plan(self, now_s: float) -> Union[FrameRequest, Pending]:
        """The frames to begin making now."""
        idle_s = self._idle_s()
        if self.pacer.running and idle_s is not None and now_s >= idle_s:
            self._unwatched = True
            self.abandon()
            self._settle(now_s)
        if not self.pacer.running or self.condition is None:
            return Pending(None)
        if self.options.policy == BLOCK and len(self.queue) >= self._full:
            self._was_full = True
            return Pending(idle_s)
        stride = self.quality.divisor
        slot = self.pacer.plan(now_s, stride)
        begin_s = slot.due_s - self._lead.lead_s(float(stride * self.pacer.period), self.options.ahead)
        return Pending(begin_s) if now_s < begin_s else self._request(slot, stride, self.condition)

    def _request(self, slot: FrameSlot, stride: int, condition: Condition) -> FrameRequest:
        aims = self._to_aim or self._to_restart
        request = FrameRequest(
            tuple(slot.index + stride * i for i in range(self._rows)),
            stride,
            slot.skipped,
            self.generation,
            condition.caption,
            condition if aims else None,
            self._seed if self._to_restart else None,
            slot.restarted,
            unjudged=aims or slot.restarted or self._was_full,
        )
        self._to_aim = self._to_restart = self._was_full = False
        return request

    def deliver(self, request: FrameRequest, frames: list[Frame], took_s: float, now_s: float) -> None:
        """Take frames that were made. Those of an old generation are dropped, and made again while there is time."""
        self.counts.rendered += len(frames)
        self._lead.observe(took_s)
        stale = request.generation != self.generation
        if stale:
            self.counts.dropped[STALE] += len(frames)
            self._tries += 1
            if self._tries < TRIES:
                return
        self._tries = 0
        self.counts.dropped[SKIPPED] += request.skipped
        self.counts.anchors += request.restarted
        self.pacer.commit(request.indices[-1])
        if stale:
            return
        if self.pacer.running:
            self._judge(request, took_s, now_s)
        self.queue.extend(frames)
        while len(self.queue) > self._full + self._rows - 1:  # of a group, only the first is needed by now
            self._drop_oldest()

    def _judge(self, request: FrameRequest, took_s: float, now_s: float) -> None:
        """Count frames that are late, and decide about quality at the end of each window."""
        half_s = float(request.stride * self.pacer.period) / 2
        late = sum(now_s - self.pacer.due(index) > half_s for index in request.indices)
        self.counts.late += late
        self._costs_s.append(took_s / len(request.indices))
        self._frames += len(request.indices)
        self._missed += 0 if request.unjudged else late + request.skipped
        if now_s - self._window_s >= WINDOW_S and self._frames >= WINDOW_FRAMES:
            if self.options.adaptive:
                self.quality.observe(QualityWindow(self._frames, self._missed, median(self._costs_s)))
            self._new_window(now_s)

    # Shared parts.

    def _new_window(self, now_s: float) -> None:
        self._window_s, self._frames, self._missed = now_s, 0, 0
        self._costs_s: list[float] = []

    def _next_generation(self, now_s: float) -> None:
        """Drop the frames that wait. Their numbers, if their time is not over, are free for the new generation."""
        self.generation += 1
        if self.queue:
            stride = self.quality.divisor
            first = max(self.queue[0].index, self.pacer.present(now_s))
            self.pacer.rewind(max(self._taken, first - stride))
        self.counts.dropped[STALE] += len(self.queue)
        self.queue.clear()
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        """Run or stand still, as the stream's state says."""
        if not (self.condition is None or self._paused or self._unwatched):
            self.pacer.go(now_s)
        elif self.pacer.running:
            self.pacer.hold(now_s)
            self.counts.stand_still()
            self._new_window(now_s)

    def _idle_s(self) -> Optional[float]:
        """When the stream will have been without a consumer for `idle_after_s`; None for never."""
        after_s = self.options.idle_after_s
        return None if after_s is None or self._consumers else self._seen_s + after_s

    def _drop_oldest(self) -> None:
        self.queue.popleft()
        self.counts.dropped[OVERTAKEN] += 1
