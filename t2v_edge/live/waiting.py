"""Waiting on the clock and on each other: all that live code does with time, so that tests can make time up."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Optional, Protocol

if TYPE_CHECKING:
    import asyncio


class WaitClock(Protocol):
    """Monotonic seconds, and waits that end at a time or when they are told.

    All three ways of waiting may end early without a reason: who waits looks again at what it waits for.
    """

    def now(self) -> float: ...

    def wait(self, condition: threading.Condition, until_s: Optional[float]) -> None:
        """Wait, holding `condition`, until it is notified or the clock says `until_s`; None: until it is notified."""
        ...

    async def wait_async(
        self, condition: threading.Condition, told: asyncio.Future[None], until_s: Optional[float]
    ) -> None:
        """Wait in an event loop, not holding `condition`, until `told` is done or the clock says `until_s`."""
        ...

    def notify(self, condition: threading.Condition) -> None:
        """Wake all who `wait`; `condition` is held."""
        ...


class SystemClock:
    """The machine's monotonic clock. On Linux it stands still while the machine is suspended."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, until_s: Optional[float]) -> None:
        condition.wait(None if until_s is None else max(until_s - self.now(), 0.0))

    async def wait_async(
        self, condition: threading.Condition, told: asyncio.Future[None], until_s: Optional[float]
    ) -> None:
        import asyncio  # heavy, and already there where there is a loop to run this

        await asyncio.wait({told}, timeout=None if until_s is None else max(until_s - self.now(), 0.0))

    def notify(self, condition: threading.Condition) -> None:
        condition.notify_all()
