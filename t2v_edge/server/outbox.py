"""What waits to be sent to one client: its messages in order, and of its frames the newest."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Optional, TypeVar, Union

MAX_TEXTS = 64
T = TypeVar("T")


class Outbox(Generic[T]):
    """Messages go first and none is lost; a frame that is not taken in time makes room for the next. On the event loop.

    dropped: frames that made room. texts, frames: how much waits.
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
        """Queue a message; False where `MAX_TEXTS` wait already, which means that the client does not read."""
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
        """The next message, else the newest frame; waits for one."""
        while True:
            if self._texts:
                return self._texts.popleft()
            frame, self._frame = self._frame, None
            if frame is not None:
                return frame
            self._wake.clear()
            await self._wake.wait()

    def drain(self) -> list[str]:
        """Take all messages that wait."""
        texts = list(self._texts)
        self._texts.clear()
        return texts
