"""The state of a live stream and its rules: what is made next, what is given to the consumer, what is dropped and why.

No threads, no waiting, no clock: times are handed in, so that a test can be the render thread and the consumer in turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING, Optional, Union

from t2v_edge.frame import Frame
from t2v_edge.live.maker import FrameRequest
from t2v_edge.live.options import BLOCK, LATEST, LiveOptions
from t2v_edge.live.pacer import FrameSlot, LeadTime, Pacer
from t2v_edge.live.quality import Quality, QualityWindow
from t2v_edge.live.stats import OVERTAKEN, SKIPPED, STALE, UNWATCHED, FrameCounts

if TYPE_CHECKING:
    from t2v_edge.pipeline import Condition

TRIES = 2
"""How often a frame is made for one moment, where the caption changes while it is made."""
WINDOW_S, WINDOW_FRAMES = 1.0, 5
"""Quality is decided when both have passed."""


@dataclass(frozen=True)
class Pending:
    """Nothing now. until_s: when to look again; None: when something has changed."""

    until_s: Optional[float]


class LiveCore:
    """One live stream. Whoever calls it holds the stream's lock. rows: frames that are made at once, at most."""

    def __init__(self, options: LiveOptions, fps: Fraction, rows: int, now_s: float) -> None:
        self.options = options
        self.pacer = Pacer(fps, options.bound_s)
        self.quality = Quality(fps)
        self.ledger = FrameCounts()
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
        """A caption was set, at `asked_s`; whether it is another one."""
        if self.condition is not None and condition.caption == self.condition.caption:
            return False
        if self.condition is None:
            self._seen_s = now_s
        self.condition, self._to_aim = condition, True
        self._next_generation(now_s)
        if self.pacer.running and self.generation > 0:
            self.ledger.ask(self.generation, asked_s)
        return True

    def pause(self, paused: bool, now_s: float) -> None:
        self._paused = paused
        self._settle(now_s)

    def reset(self, seed: Optional[int], now_s: float) -> None:
        """Begin a new motion, with another seed or the same."""
        self._seed = self._seed if seed is None else seed
        self._to_restart = True
        if self.condition is not None:
            self._next_generation(now_s)

    def arrive(self, now_s: float) -> bool:
        """A consumer waits for a frame; whether that wakes the stream."""
        self._consumers += 1
        woken, self._unwatched = self._unwatched, False
        if woken:
            self._settle(now_s)
        return woken

    def leave(self, now_s: float) -> None:
        self._consumers -= 1
        self._seen_s = now_s

    def abandon(self) -> None:
        """Nobody comes for the frames that wait."""
        self.ledger.dropped[UNWATCHED] += len(self.queue)
        self.queue.clear()

    # The consumer's side.

    def take(self, now_s: float) -> Union[Frame, Pending]:
        """A frame that is due."""
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
        self.ledger.show(frame.generation, now_s)
        return frame

    # The render thread's side.

    def plan(self, now_s: float) -> Union[FrameRequest, Pending]:
        """What to begin making now."""
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
        return Pending(begin_s) if now_s < begin_s else self._order(slot, stride, self.condition)

    def _order(self, slot: FrameSlot, stride: int, condition: Condition) -> FrameRequest:
        aims = self._to_aim or self._to_restart
        order = FrameRequest(
            tuple(slot.index + stride * i for i in range(self._rows)),
            stride,
            slot.skipped,
            self.generation,
            condition.caption,
            condition if aims else None,
            self._seed if self._to_restart else None,
            slot.anew,
            excused=aims or slot.anew or self._was_full,
        )
        self._to_aim = self._to_restart = self._was_full = False
        return order

    def deliver(self, order: FrameRequest, frames: list[Frame], took_s: float, now_s: float) -> None:
        """Frames are made. Those of an old generation are dropped, and made anew while there is time."""
        self.ledger.rendered += len(frames)
        self._lead.observe(took_s)
        stale = order.generation != self.generation
        if stale:
            self.ledger.dropped[STALE] += len(frames)
            self._tries += 1
            if self._tries < TRIES:
                return
        self._tries = 0
        self.ledger.dropped[SKIPPED] += order.skipped
        self.ledger.anchors += order.anew
        self.pacer.commit(order.indices[-1])
        if stale:
            return
        if self.pacer.running:
            self._judge(order, took_s, now_s)
        self.queue.extend(frames)
        while len(self.queue) > self._full + self._rows - 1:  # of a group, only the first is needed by now
            self._drop_oldest()

    def _judge(self, order: FrameRequest, took_s: float, now_s: float) -> None:
        """Count frames that are late, and decide about quality now and then."""
        half_s = float(order.stride * self.pacer.period) / 2
        late = sum(now_s - self.pacer.due(index) > half_s for index in order.indices)
        self.ledger.late += late
        self._costs_s.append(took_s / len(order.indices))
        self._frames += len(order.indices)
        self._missed += 0 if order.excused else late + order.skipped
        if now_s - self._window_s >= WINDOW_S and self._frames >= WINDOW_FRAMES:
            if self.options.adaptive:
                self.quality.observe(QualityWindow(self._frames, self._missed, median(self._costs_s)))
            self._new_window(now_s)

    # Parts of all of them.

    def _new_window(self, now_s: float) -> None:
        self._window_s, self._frames, self._missed = now_s, 0, 0
        self._costs_s: list[float] = []

    def _next_generation(self, now_s: float) -> None:
        """What waits is old; numbers whose time is not over are free again, for frames of the new generation."""
        self.generation += 1
        if self.queue:
            stride = self.quality.divisor
            first = max(self.queue[0].index, self.pacer.present(now_s))
            self.pacer.rewind(max(self._taken, first - stride))
        self.ledger.dropped[STALE] += len(self.queue)
        self.queue.clear()
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        """Run or stand still, as the stream's state demands."""
        if not (self.condition is None or self._paused or self._unwatched):
            self.pacer.go(now_s)
        elif self.pacer.running:
            self.pacer.hold(now_s)
            self.ledger.stand_still()
            self._new_window(now_s)

    def _idle_s(self) -> Optional[float]:
        """When the stream will have been without a consumer for too long."""
        after_s = self.options.idle_after_s
        return None if after_s is None or self._consumers else self._seen_s + after_s

    def _drop_oldest(self) -> None:
        self.queue.popleft()
        self.ledger.dropped[OVERTAKEN] += 1
