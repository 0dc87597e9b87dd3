"""The clock of live streams and the waits on it, which tests replace by a time of their own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Optional, Protocol

if TYPE_CHECKING:
    import asyncio


class WaitClock(Protocol):
    """Monotonic seconds, and waits that end at a time or at a signal.

    A wait may end early without a reason. Whoever waits then looks again at what it waits for.
    """

    def now(self) -> float: ...

    def wait(self, condition: threading.Condition, until_s: Optional[float]) -> None:
        """Wait, holding `condition`, until it is notified or the clock says `until_s`; None: no time limit."""
        ...

    async def wait_async(
        self, condition: threading.Condition, changed: asyncio.Future[None], until_s: Optional[float]
    ) -> None:
        """Wait in an event loop, not holding `condition`, until `changed` is done or the clock says `until_s`."""
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
        self, condition: threading.Condition, changed: asyncio.Future[None], until_s: Optional[float]
    ) -> None:
        import asyncio  # a heavy module, which a running loop has already loaded

        await asyncio.wait({changed}, timeout=None if until_s is None else max(until_s - self.now(), 0.0))

    def notify(self, condition: threading.Condition) -> None:
        condition.notify_all()
