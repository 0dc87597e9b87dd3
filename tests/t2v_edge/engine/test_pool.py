"""Threads that share what runs: nobody overtakes, nobody is left behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from t2v_edge.engine.base import EngineOptions
from t2v_edge.engine.pool import BorrowPool
from t2v_edge.engine.registry import is_installed, open_engine
from t2v_edge.errors import EngineError, UsageError
from tests.t2v_edge.live_device import in_thread


class Borrower:
    """A thread that borrows once, and keeps it until it is told to let go."""

    def __init__(self, lender, got):
        self._let_go, self.has = threading.Event(), threading.Event()
        self._result = in_thread(lambda: self._borrow(lender, got))

    def _borrow(self, lender, got):
        with lender.borrow() as thing:
            got.append((self, thing))
            self.has.set()
            assert self._let_go.wait(20)
        return thing

    def done(self):
        self._let_go.set()
        return self._result()


def queued(lender, count):
    """Wait until so many wait."""
    while len(lender._waiting) < count:
        threading.Event().wait(0.001)


def test_who_comes_first_is_served_first_and_nobody_overtakes():
    lender, got = BorrowPool("wide"), []
    first = Borrower(lender, got)
    assert first.has.wait(20)
    waiting = []
    for number in range(5):
        waiting.append(Borrower(lender, got))
        queued(lender, number + 1)
    first.done()
    for borrower in waiting:
        assert borrower.has.wait(20)
        assert borrower.done() == "wide"
    assert [who for who, _ in got] == [first, *waiting]


def test_who_is_alone_gets_the_wide_one_and_those_beside_others_the_narrow_ones():
    lender, got = BorrowPool("wide", ["a", "b"]), []
    first, second, third = (Borrower(lender, got) for _ in range(3))
    for borrower in (first, second, third):
        assert borrower.has.wait(20)
    fourth = Borrower(lender, got)
    queued(lender, 1)
    things = [borrower.done() for borrower in (first, second, third)]
    assert sorted(things) == ["a", "b", "wide"]
    assert fourth.has.wait(20) and fourth.done() in ("a", "b", "wide")
    with lender.borrow() as thing:
        assert thing == "wide", "alone again"


def test_a_failure_gives_back_what_was_borrowed_and_after_closing_there_is_none():
    lender = BorrowPool("wide")
    with pytest.raises(ValueError), lender.borrow():
        raise ValueError
    held = Borrower(lender, got := [])
    assert held.has.wait(20)
    waits = in_thread(lambda: lender.borrow().__enter__())
    queued(lender, 1)
    closing = in_thread(lender.close)
    assert waits() is None, "who waits is told"
    held.done()
    closing()
    with lender.borrow() as thing:
        assert thing is None
    assert len(got) == 1


def test_who_is_interrupted_while_waiting_takes_nothing_from_the_others(monkeypatch):
    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    lender, got = BorrowPool("wide"), []
    held = Borrower(lender, got)
    assert held.has.wait(20)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("t2v_edge.engine.pool.threading.Event", Interrupted)
        lender.borrow().__enter__()
    assert not lender._waiting
    held.done()
    with lender.borrow() as thing:
        assert thing == "wide"
    in_thread(lender.close)()


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
def test_callers_beside_each_other_get_the_frames_that_each_would_get_alone(build_graph, specs, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    spec = specs["render"]
    rng = np.random.default_rng(0)
    feeds = [{t.name: rng.standard_normal(t.shape).astype(np.float32) for t in spec.inputs} for _ in range(40)]
    with open_engine("openvino", build_graph("render"), spec, EngineOptions(2)) as alone:
        wanted = [alone.run(one)["frame"] for one in feeds]
    with open_engine("openvino", build_graph("render"), spec, EngineOptions(2, callers=8)) as engine:
        assert len(engine._pool._others) == 2
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                for frame, expected in zip(pool.map(lambda one: engine.run(one)["frame"], feeds), wanted):
                    assert np.array_equal(frame, expected)
    with pytest.raises(EngineError, match="is closed"):
        engine.run(feeds[0])
    with pytest.raises(UsageError, match="callers is 0"):
        EngineOptions(callers=0)
