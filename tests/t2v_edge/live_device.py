"""A tiny model whose stages take made-up time, and helpers to watch live streams of it."""

from __future__ import annotations

import threading
from itertools import islice

from t2v_edge.play.model import Model
from tests.t2v_edge.fake_time import STUCK_S

WALK, RUN, DANCE = "a person is walking", "a person is running", "一个人 dancing"


class Device:
    """A model whose stages take made-up time, and that keeps what they were fed and gave."""

    def __init__(self, model, clock) -> None:
        self._model, self.clock = model, clock
        self.cost_s = {"render": 0.0, "motion": 0.0}
        self.calls = []
        self.on_run = lambda stage: None

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, stage, feeds):
        self.clock.work(self.cost_s.get(stage, 0.0))
        results = self._model.run(stage, feeds)
        self.calls.append((stage, dict(feeds), dict(results)))
        self.on_run(stage)
        return results

    def of(self, stage):
        return [(feeds, results) for name, feeds, results in self.calls if name == stage]

    def player(self, *args):
        return Model.player(self, *args)


def show(stream, count):
    """The next frames, and when each came."""
    found = []
    for frame in islice(stream, count):
        found.append((frame, stream._time.now()))
    return found


def numbers(shown):
    return [frame.index for frame, _ in shown]


def in_thread(work):
    """Run `work` in a thread; a function that waits for it and gives what it returned or raises what it raised."""
    found = {}

    def run():
        try:
            found["value"] = work()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            found["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(STUCK_S)
        assert not thread.is_alive(), "the thread is stuck"
        if "error" in found:
            raise found["error"]
        return found["value"]

    return result
