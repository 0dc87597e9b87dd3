"""The queue of one client: its messages in order, and the newest of its frames."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Optional, TypeVar, Union

MAX_TEXTS = 64
T = TypeVar("T")


class Outbox(Generic[T]):
    """A queue of messages and one frame, for the event loop. Messages come first. A new frame replaces the one before.

    dropped: frames that were replaced.
    texts, frames: how many messages and frames wait.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._texts: deque[str] = deque()
        self._frame: Optional[T] = None
        self._wake = asyncio.Event()

    @property
    def texts(self) -> int:
        return len(self._texts)

    @property
    def frames(self) -> int:
        return int(self._frame is not None)

    def put_text(self, text: str) -> bool:
        """Queue a message. False if `MAX_TEXTS` wait already: then the client does not read."""
        if len(self._texts) >= MAX_TEXTS:
            return False
        self._texts.append(text)
        self._wake.set()
        return True

    def put_frame(self, frame: T) -> None:
        self.dropped += self._frame is not None
        self._frame = frame
        self._wake.set()

    async def get(self) -> Union[str, T]:
        """Wait for the next message, or else the newest frame, and take it."""
        while True:
            if self._texts:
                return self._texts.popleft()
            frame, self._frame = self._frame, None
            if frame is not None:
                return frame
            self._wake.clear()
            await self._wake.wait()

    def drain(self) -> list[str]:
        """Take all messages."""
        texts = list(self._texts)
        self._texts.clear()
        return texts
