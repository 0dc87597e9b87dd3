"""A client that measures: it sends captions and records when each frame comes. It decodes no frame."""

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
"""Time between two looks for the first frame, and for the last caption's. Neither is part of a measurement."""


class BenchClient(AsyncClient):
    """One viewer. `record` holds its measurements, from `start` on."""

    def __init__(self, options: ClientOptions) -> None:
        super().__init__(options)
        self._record: Optional[ClientRecord] = None

    def now(self) -> float:
        """Seconds on the clock of all recorded times."""
        return time.monotonic()

    @property
    def record(self) -> ClientRecord:
        """The measurements; raises `ClientError` before `start`."""
        if self._record is None:
            raise ClientError("the viewer has not started; call start")
        return self._record

    async def start(self, text: str, timeout_s: float) -> None:
        """Send a first caption and wait for its first frame. Raises `ClientError` if none comes in time."""
        fps = self.welcome.settings.fps
        if fps is None:
            raise ClientError(f"{self.options.url} does not say its frame rate; connect to t2v-edge serve")
        self._record = ClientRecord(fps)
        await self.send_caption(text)
        until_s = self.now() + timeout_s
        while self.record.frames == 0:
            self._check()
            if self.now() > until_s:
                raise ClientError(
                    f"{self.options.url} sent no frame within {timeout_s:g} s of the first caption; look "
                    "at the server's log"
                )
            await asyncio.sleep(POLL_S)

    async def send_caption(self, text: str, due_s: Optional[float] = None) -> None:
        """Send a final caption. due_s: when its video should be there, None for as soon as possible."""
        segment = self._segment + 1
        self.record.caption_sent(segment, self.now(), due_s)
        await self.caption(text, segment=segment)

    async def play(self, lines: Iterable[TimedCaption], start_s: float, stop: asyncio.Future[None]) -> None:
        """Send every caption at its time after `start_s`, until `stop`. Raises if the connection ends."""
        for line in lines:
            await self.wait_until(start_s + line.at_s, stop)
            if stop.done():
                return
            await self.send_caption(line.text, start_s + line.at_s)

    async def wait_until(self, until_s: float, stop: asyncio.Future[None]) -> None:
        """Receive until `until_s` or `stop`. Raises if the connection ends before."""
        assert self._reader is not None
        while not stop.done() and (wait_s := until_s - self.now()) > 0:
            self._check()
            await asyncio.wait({self._reader, stop}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)

    async def wait_for_answers(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for the first frames of captions already sent."""
        until_s = self.now() + timeout_s
        while self.record.is_waiting and self.now() < until_s and self._ended is None:
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
        if self._record is not None:
            self._record.frame_received(header, at_s)

    def _take(self, message: ServerMessage) -> None:
        if isinstance(message, Showing) and self._record is not None:
            self._record.caption_shown(message)
        super()._take(message)
