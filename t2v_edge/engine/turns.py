"""Who runs next, where several threads share what runs: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Optional, TypeVar

T = TypeVar("T")


class _Waiter(Generic[T]):
    """One thread's wait; `thing` is None where there will be none."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.thing: Optional[T] = None


class BorrowPool(Generic[T]):
    """Things that threads borrow. alone: for who comes while nobody has one; crowd: for those who come beside others.

    Nobody overtakes: a plain lock may be taken again by the thread that has just let go of it, and a stream that is
    late would keep the others waiting.
    """

    def __init__(self, alone: T, crowd: Sequence[T] = ()) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._alone = alone
        self._crowd = list(crowd)
        self._in_use = 0
        self._waiting: deque[_Waiter[T]] = deque()
        self._closed = False

    @contextmanager
    def take(self) -> Iterator[Optional[T]]:
        """Borrow one; waits for it. None once they are closed."""
        turn: _Waiter[T] = _Waiter()
        with self._lock:
            if self._closed:
                turn.come.set()
            else:
                self._waiting.append(turn)
                self._deal()
        try:
            turn.come.wait()
            yield turn.thing
        finally:  # of an interrupted wait as well
            self._leave(turn)

    def _leave(self, turn: _Waiter[T]) -> None:
        """Give back what was borrowed, or wait no more."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn.thing is not None:
                self._in_use -= 1
                if turn.thing is not self._alone:
                    self._crowd.append(turn.thing)
                self._deal()
                self._changed.notify_all()

    def close(self) -> None:
        """Give out no more, and wait for what is borrowed."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().come.set()
            while self._in_use:
                self._changed.wait()

    def _deal(self) -> None:
        while self._waiting and (self._in_use == 0 or self._crowd):
            turn = self._waiting.popleft()
            turn.thing = self._alone if self._in_use == 0 else self._crowd.pop()
            self._in_use += 1
            turn.come.set()
