"""Things that several threads borrow in turn: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Optional, TypeVar

T = TypeVar("T")


class _Waiter(Generic[T]):
    """One thread's wait. `thing`: what it borrowed, None in a closed pool."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.thing: Optional[T] = None


class BorrowPool(Generic[T]):
    """Things that threads borrow. alone: for a thread that comes while none is lent. others: for all further threads.

    Threads are served in the order in which they come. A plain lock may go back to the thread that has just released
    it; a stream that is late would then keep the others waiting.
    """

    def __init__(self, alone: T, others: Sequence[T] = ()) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._alone = alone
        self._others = list(others)
        self._in_use = 0
        self._waiting: deque[_Waiter[T]] = deque()
        self._closed = False

    @contextmanager
    def borrow(self) -> Iterator[Optional[T]]:
        """Wait for a thing and borrow it for the block; None in a closed pool."""
        waiter: _Waiter[T] = _Waiter()
        with self._lock:
            if self._closed:
                waiter.ready.set()
            else:
                self._waiting.append(waiter)
                self._lend()
        try:
            waiter.ready.wait()
            yield waiter.thing
        finally:  # of an interrupted wait as well
            self._leave(waiter)

    def _leave(self, waiter: _Waiter[T]) -> None:
        """Give back what was borrowed, or stop waiting."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.thing is not None:
                self._in_use -= 1
                if waiter.thing is not self._alone:
                    self._others.append(waiter.thing)
                self._lend()
                self._changed.notify_all()

    def close(self) -> None:
        """Lend nothing more, and wait for what is lent."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().ready.set()
            while self._in_use:
                self._changed.wait()

    def _lend(self) -> None:
        while self._waiting and (self._in_use == 0 or self._others):
            waiter = self._waiting.popleft()
            waiter.thing = self._alone if self._in_use == 0 else self._others.pop()
            self._in_use += 1
            waiter.ready.set()
