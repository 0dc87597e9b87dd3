"""The rules of a live stream, by a single thread that is render thread, consumer and clock in turn."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2v_edge.frame import Frame
from t2v_edge.live.core import LiveCore, Pending
from t2v_edge.live.maker import FrameRequest
from t2v_edge.live.options import LiveOptions

PIXELS = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class Said:
    """A condition without numbers."""

    caption: str


class Player:
    """Plays a core by hand, and holds it to what is promised at every step."""

    def __init__(self, fps, options, rows, now=50.0):
        self.fps, self.now, self.start = fps, now, None
        self.core = LiveCore(options, fps, rows, now)
        self.shown = []
        self.paused = False
        self.order = None
        self.begun = now
        self.stood_still, self.held_since = Fraction(0), None

    def note(self):
        """Keep account of the stream's own time, apart from the pacer."""
        running = self.core.pacer.running
        if running and self.start is None:
            self.start = Fraction(self.now)
        if not running and self.start is not None and self.held_since is None:
            self.held_since = Fraction(self.now)
        if running and self.held_since is not None:
            self.stood_still += Fraction(self.now) - self.held_since
            self.held_since = None

    def caption(self, number):
        self.core.aim(Said(f"caption {number}"), self.now, self.now)

    def pause(self, paused):
        self.paused = paused
        self.core.pause(paused, self.now)

    def begin(self):
        found = self.core.plan(self.now) if self.order is None else None
        if isinstance(found, FrameRequest):
            self.order, self.begun = found, self.now
            assert self.core.pacer.running and found.generation == self.core.generation
        elif isinstance(found, Pending) and found.until_s is not None:
            assert found.until_s > self.now, "nobody waits for what is past"

    def finish(self):
        if self.order is not None:
            order, self.order = self.order, None
            frames = [
                Frame(PIXELS, index, index, 1 / self.fps, order.generation, order.caption) for index in order.indices
            ]
            self.core.deliver(order, frames, self.now - self.begun, self.now)

    def consume(self):
        self.core.arrive(self.now)
        self.note()
        found = self.core.take(self.now)
        self.core.leave(self.now)
        if isinstance(found, Pending):
            assert found.until_s is None or found.until_s > self.now
            return
        assert not self.paused, "no frame while it is paused"
        assert found.generation == self.core.generation, "no frame of an old generation"
        assert not self.shown or found.index > self.shown[-1].index, "numbers rise strictly"
        own_time = Fraction(self.now) - self.start - self.stood_still
        assert found.seconds <= own_time, "no frame before it is due"
        self.shown.append(found)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("caption"), st.integers(0, 2)),
        st.tuples(st.just("pause"), st.booleans()),
        st.tuples(st.just("reset"), st.integers(0, 2)),
        st.tuples(st.just("begin"), st.none()),
        st.tuples(st.just("finish"), st.none()),
        st.tuples(st.just("consume"), st.none()),
        st.tuples(st.just("wait"), st.floats(0.0, 0.1)),
        st.tuples(st.just("stall"), st.floats(0.1, 1e5)),
        st.tuples(st.just("play"), st.integers(1, 10)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(
    EVENTS,
    st.sampled_from([24, 30, 60, 120]),
    st.sampled_from(["latest", "drop-oldest", "block"]),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from([None, 0.0, 0.5, 5.0]),
)
def test_no_order_of_events_breaks_what_is_promised(events, fps, policy, queue, ahead, rows, idle_after_s):
    options = LiveOptions(policy=policy, queue=queue, ahead=ahead, idle_after_s=idle_after_s)
    player = Player(Fraction(fps), options, rows)
    core = player.core
    for what, value in events:
        if what in ("wait", "stall"):
            player.now += value
        elif what == "caption":
            player.caption(value)
        elif what == "pause":
            player.pause(value)
        elif what == "reset":
            core.reset(value, player.now)
        elif what == "play":  # a while of everything in its turn
            for _ in range(value):
                for step in (player.begin, player.finish, player.consume):
                    step()
                    player.note()
                player.now += 0.5 / fps
        else:
            getattr(player, what)()
        player.note()
        assert len(core.queue) <= queue + ahead + min(rows, ahead + 1) - 1
        assert all(frame.generation == core.generation for frame in core.queue)
    book = core.counts
    made_and_gone = sum(book.dropped[reason] for reason in ("stale", "overtaken", "unwatched"))
    assert book.rendered == book.shown + made_and_gone + len(core.queue), "every frame is accounted for"
    assert book.shown == len(player.shown)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_whatever_happened_frames_flow_again_and_on_time(events):
    player = Player(Fraction(30), LiveOptions(), 1)
    for what, value in events:
        if what in ("wait", "stall"):
            player.now += value
        elif what == "caption":
            player.caption(value)
        elif what == "pause":
            player.pause(value)
        elif what != "reset" and what != "play":
            getattr(player, what)()
        player.note()
    player.finish()
    player.caption(99)
    player.pause(False)
    player.note()
    before = len(player.shown)
    for _ in range(400):
        for step in (player.begin, player.finish, player.consume):
            step()
        player.now += 0.005
    assert len(player.shown) - before >= 55, "two seconds at 30 fps, and a little to get going"
    last = player.shown[-30:]
    assert {b.index - a.index for a, b in zip(last, last[1:])} == {1}


def test_the_switch_is_counted_from_where_it_was_asked_for_and_not_over_a_pause():
    player = Player(Fraction(30), LiveOptions(), 1)
    player.caption(0)
    for step in (player.note, player.begin, player.finish, player.consume):
        step()
    player.core.aim(Said("another"), player.now, player.now + 0.010)
    player.now += 0.032
    for step in (player.begin, player.finish):
        step()
    player.now += 0.008
    player.consume()
    assert player.core.counts.switch.max_ms == pytest.approx(40)
    player.caption(1)
    player.pause(True)
    player.caption(2)
    player.now += 100
    player.pause(False)
    for _ in range(10):
        for step in (player.note, player.begin, player.finish, player.consume):
            step()
        player.now += 0.02
    assert player.shown[-1].generation == 3 and player.core.counts.switch.count == 1
    assert player.core.counts.fps == pytest.approx(30, rel=0.25), "and no rate over a pause"


def test_a_first_caption_that_comes_late_finds_the_stream_awake():
    player = Player(Fraction(30), LiveOptions(idle_after_s=1.0), 1)
    player.now += 3600
    player.caption(0)
    player.begin()
    assert player.order is not None and player.core.pacer.running
    player.finish()
    player.now += 1.0
    player.begin()
    assert not player.core.pacer.running and player.core.counts.dropped["unwatched"] == 1
    player.now += 50
    player.consume()
    assert player.core.pacer.running
