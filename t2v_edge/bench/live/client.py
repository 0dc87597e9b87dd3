"""A client that measures: it speaks its script and notes when each frame comes, and looks at none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Optional

from t2v_edge.bench.live.record import ClientRecord
from t2v_edge.bench.live.script import TimedCaption
from t2v_edge.errors import ClientError, T2VError
from t2v_edge.remote.async_client import AsyncClient
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.options import ClientOptions
from t2v_edge.remote.protocol import ServerMessage, Showing

POLL_S = 0.05
"""How often it is looked whether the first frame, and the last caption's, has come: nothing that is measured."""


class BenchClient(AsyncClient):
    """One viewer. What it sees is in `seen`, from `meet` on."""

    def __init__(self, options: ClientOptions) -> None:
        super().__init__(options)
        self.record: Optional[ClientRecord] = None

    def now(self) -> float:
        """Seconds of the clock that frames are noted by."""
        return time.monotonic()

    @property
    def seen(self) -> ClientRecord:
        """The record; raises `ClientError` before `meet`."""
        if self.record is None:
            raise ClientError("the viewer has not met its server; call meet")
        return self.record

    async def meet(self, text: str, timeout_s: float) -> None:
        """Send a first caption and wait for its first frame. Raises `ClientError` where none comes in time."""
        fps = self.welcome.settings.fps
        if fps is None:
            raise ClientError(f"{self.options.url} does not say its frame rate; connect to t2v-edge serve")
        self.record = ClientRecord(fps)
        await self.say(text)
        until_s = self.now() + timeout_s
        while self.seen.frames == 0:
            self._check()
            if self.now() > until_s:
                raise ClientError(
                    f"{self.options.url} sent no frame within {timeout_s:g} s of the first caption; look "
                    "at the server's log"
                )
            await asyncio.sleep(POLL_S)

    async def say(self, text: str, due_s: Optional[float] = None) -> None:
        """Send a caption, a final one; due_s: when its video should be there."""
        segment = self._segment + 1
        self.seen.say(segment, self.now(), due_s)
        await self.caption(text, segment=segment)

    async def speak(self, lines: Iterable[TimedCaption], start_s: float, stop: asyncio.Future[None]) -> None:
        """Say every line at its time after `start_s`, until `stop`; raises where the connection ends."""
        for line in lines:
            await self.stay(start_s + line.at_s, stop)
            if stop.done():
                return
            await self.say(line.text, start_s + line.at_s)

    async def stay(self, until_s: float, stop: asyncio.Future[None]) -> None:
        """Watch until `until_s` or `stop`; raises where the connection ends before."""
        assert self._reader is not None
        while not stop.done() and (wait_s := until_s - self.now()) > 0:
            self._check()
            await asyncio.wait({self._reader, stop}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self, timeout_s: float) -> None:
        """Wait for the first frames of captions that have been sent, for so long at most."""
        until_s = self.now() + timeout_s
        while self.seen.waits and self.now() < until_s and self._ended is None:
            await asyncio.sleep(POLL_S)

    def _check(self) -> None:
        if self._ended is not None:
            raise (
                self._ended
                if isinstance(self._ended, T2VError)
                else ClientError(
                    f"the connection to {self.options.url} ended ({self._ended}); look at the server's log"
                )
            )

    def _take_frame(self, data: bytes) -> None:
        at_s = self.now()
        header, _ = FrameHeader.unpack(data)
        if self.record is not None:
            self.record.see(header, at_s)

    def _take(self, message: ServerMessage) -> None:
        if isinstance(message, Showing) and self.record is not None:
            self.record.hear(message)
        super()._take(message)
