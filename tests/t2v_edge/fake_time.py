"""Made-up time for live streams: it stands still while anybody works, and goes to the next deadline when all wait."""

from __future__ import annotations

import asyncio
import time

STUCK_S = 20  # real seconds after which a test that waits for nothing fails


class FakeClock:
    """A `WaitClock` of one stream. `workers`: threads and tasks that wait on it, the render thread included.

    `pass_time` waits in it as a consumer would; `work` is what takes the render thread time.
    """

    def __init__(self, workers: int = 2, start: float = 1000.0) -> None:
        self.workers = workers
        self.time = start
        self.condition = None
        self._waiting = {}

    def now(self):
        return self.time

    def work(self, seconds):
        """Take time, in which others take turns as their time comes."""
        end = self.time + seconds
        if seconds:
            with self.condition:
                while self.time < end:
                    self.wait(self.condition, end)

    def wait(self, condition, until_s):
        self.condition = condition
        token = object()
        self._waiting[token] = (until_s, None)
        self._advance(condition)
        end = time.monotonic() + STUCK_S
        while token in self._waiting:
            condition.wait(STUCK_S)
            if time.monotonic() > end:
                raise AssertionError("everybody waits and nothing will ever happen")

    async def wait_async(self, condition, told, until_s):
        token = object()
        with condition:
            self._waiting[token] = (until_s, (told, asyncio.get_running_loop()))
            if told.done():
                del self._waiting[token]
            self._advance(condition)
        try:
            await asyncio.wait_for(asyncio.shield(told), STUCK_S)
        finally:
            self._waiting.pop(token, None)

    def notify(self, condition):
        """Everybody looks again; tasks are woken by the stream itself."""
        self._waiting.clear()
        condition.notify_all()

    def pass_time(self, live, seconds):
        """Let `seconds` go by, as one of the workers."""
        assert live._changed is self.condition
        self.work(seconds)

    def let_go(self):
        """The test is over: whoever works may end."""
        with self.condition:
            self.workers = 0
            self._advance(self.condition)

    def _advance(self, condition):
        """When all wait, it is the time that the first of them waits for."""
        untils = [until for until, _ in self._waiting.values() if until is not None]
        if len(self._waiting) < self.workers or not untils:
            return
        self.time = max(self.time, min(untils))
        for token, (until, task) in list(self._waiting.items()):
            if until is not None and until <= self.time:
                del self._waiting[token]
                if task is not None:
                    told, loop = task
                    loop.call_soon_threadsafe(lambda told=told: told.done() or told.set_result(None))
        condition.notify_all()
