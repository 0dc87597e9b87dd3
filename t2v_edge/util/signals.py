"""Signals that ask a program to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable


@contextmanager
def stop_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Within the block the first Ctrl-C or SIGTERM calls `stop` on the running loop. A second one acts as usual.

    Does nothing on Windows and outside the main thread, where Ctrl-C interrupts.
    """
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        loop.remove_signal_handler(number)
        stop()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, end, number)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
