"""The session of one client of the live server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from websockets.exceptions import ConnectionClosed

from t2v_edge.captions.merger import CaptionEvent, CaptionMerger
from t2v_edge.errors import CaptionError, ProtocolError, T2VError, UsageError
from t2v_edge.live.stats import LiveCounts
from t2v_edge.remote import protocol
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.server.budget import PixelBudget
from t2v_edge.server.encode import encode
from t2v_edge.server.limits import Limits, RateLimit
from t2v_edge.server.metrics import EventRate, Metrics
from t2v_edge.server.outbox import Outbox
from t2v_edge.server.playback import PlayableStream, Playback, SessionFrame
from t2v_edge.util.timing import Latency

BYE, GONE = "bye", "gone"
"""Codes of an end without an error: the client left, or its connection is gone."""
_LOG = logging.getLogger(__name__)
_LATENCIES = 1024
_AWAITED = 256
TAKE_S = 0.05
"""Seconds between two captions of a client, because all clients share the text stage. The newest caption is taken."""
SLOW_S = 1.0
"""Seconds that a message waits for its client to read, before frames stop until it is gone."""


@dataclass(frozen=True)
class SharedServices:
    """The objects that all sessions of a server share.

    open_stream: makes a stream of the given settings. Worker threads call it.
    encoders: threads that encode frames.
    callers: threads that run captions and controls.
    """

    open_stream: Callable[[protocol.Settings], PlayableStream]
    encoders: Executor
    callers: Executor
    limits: Limits
    metrics: Metrics
    budget: PixelBudget


@dataclass(frozen=True)
class _PendingCaption:
    """A caption to be shown."""

    text: str
    segment: int
    revision: int
    received_s: float


class Session:
    """One client from its welcome to its end. It runs on the event loop; motion, rendering and encoding do not.

    name: for logs.
    fps: frames sent a second.
    depths: what waits before each stage.
    """

    def __init__(self, socket: Any, name: str, services: SharedServices, settings: protocol.Settings) -> None:
        self.name = name
        self._socket = socket
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self._outbox: Outbox[SessionFrame] = Outbox()
        self._reads = asyncio.Event()
        self._reads.set()
        self._playback = Playback(
            services.open_stream,
            services.callers,
            lambda asked: services.budget.grant(self, socket.address, asked),
            settings,
            self._outbox.put_frame,
            self._reads,
        )
        self._rate = RateLimit(services.limits.messages_per_s, services.limits.burst, self._start_s)
        self._merger = CaptionMerger()
        self._newest = (0, 0)
        self._poll: Optional[asyncio.TimerHandle] = None
        self._wanted: Optional[_PendingCaption] = None
        self._wanted_event = asyncio.Event()
        self._sent = 0
        self._captions = 0
        self._fps = EventRate()
        self._awaited: deque[tuple[int, float]] = deque(maxlen=_AWAITED)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._end: asyncio.Future[ProtocolError] = self._loop.create_future()

    async def run(self, version: int, bundle: str, base_fps: Any) -> ProtocolError:
        """Play until the client leaves, is refused, or `stop` is called. Returns why the session ended.

        The code is `BYE` or `GONE` if the client left.
        """
        tasks: list[asyncio.Future[Any]] = []
        try:
            await self._playback.open()
            most = int(self._services.budget.per_client)
            self._queue(protocol.Welcome(version, self.name, bundle, base_fps, self._playback.settings, most))
            tasks = [asyncio.ensure_future(work) for work in (self._receive(), self._send(), self._take_captions())]
            ends: list[asyncio.Future[Any]] = [self._end, self._playback.failed]
            await asyncio.wait([*ends, *tasks], return_when=asyncio.FIRST_COMPLETED)
            return self._end.result() if self._end.done() else self._why(tasks)
        except T2VError as error:
            return _refusal(error)
        finally:
            for task in tasks:
                task.cancel()
            if self._poll is not None:
                self._poll.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._playback.close()

    def stop(self, reason: ProtocolError) -> None:
        """End the session from outside."""
        if not self._end.done():
            self._end.set_result(reason)

    @property
    def fps(self) -> float:
        return self._fps.per_s(self._loop.time())

    @property
    def depths(self) -> dict[str, int]:
        return {
            "text": int(self._wanted is not None),
            "render": self._playback.counts.queued,
            "encode": self._outbox.frames,
            "send": self._outbox.texts,
        }

    @property
    def counts(self) -> tuple[int, int]:
        """The number of frames made, and of those not sent."""
        return self._playback.made, self._playback.made - self._sent

    @property
    def live(self) -> LiveCounts:
        """The counts of its streams."""
        return self._playback.counts

    def take_unsent(self) -> list[str]:
        """Take the messages that were not sent yet."""
        return self._outbox.drain()

    # Messages from the client.

    async def _receive(self) -> None:
        async for data in self._socket:
            if not self._rate.take(self._loop.time()):
                most = self._services.limits.messages_per_s
                remedy = "send captions as they change, and not more often"
                raise ProtocolError("too_fast", f"more than {most:g} messages a second came", remedy)
            try:
                await self._handle(protocol.read_client(data))
            except T2VError as error:
                self._refuse(error)

    async def _handle(
        self, message: Union[protocol.Hello, protocol.Caption, protocol.Control, protocol.StatsRequest, protocol.Bye]
    ) -> None:
        if isinstance(message, protocol.Caption):
            self._accept(message)
        elif isinstance(message, protocol.Control):
            await self._playback.control(message)
            self._queue(protocol.State(self._playback.paused, self._playback.generation, self._playback.settings))
        elif isinstance(message, protocol.StatsRequest):
            self._queue(self._stats())
        elif isinstance(message, protocol.Bye):
            raise ProtocolError(BYE, "the client is done", "connect again")
        else:
            raise ProtocolError("hello", "a second hello came", "connect again for a new session")

    def _accept(self, caption: protocol.Caption) -> None:
        now = self._loop.time()
        self._captions += 1
        self._services.metrics.count("t2v_captions_total")
        event = CaptionEvent(
            self.name, caption.segment, caption.revision, caption.text, caption.final, caption.start, caption.end, now
        )
        self._newest = max(self._newest, (caption.segment, caption.revision))
        self._want(self._merger.accept(event), now)

    def _want(self, text: Optional[str], now: float) -> None:
        """Let `text` be shown next, and ask the merger again when its next caption is due."""
        if text:
            self._wanted = _PendingCaption(text, *self._newest, now)
            self._wanted_event.set()
        if self._poll is not None:
            self._poll.cancel()
        due = self._merger.due_s
        self._poll = None if due is None else self._loop.call_at(due, self._poll_merger, due)

    def _poll_merger(self, due: float) -> None:
        now = max(due, self._loop.time())
        self._want(self._merger.poll(now), now)

    async def _take_captions(self) -> None:
        """Encode captions, at most one in `TAKE_S`. Of several that wait, only the newest is taken."""
        while True:
            await self._wanted_event.wait()
            self._wanted_event.clear()
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                begun_s = self._loop.time()
                try:
                    await self._show(wanted)
                except T2VError as error:
                    self._refuse(error)
                await asyncio.sleep(begun_s + TAKE_S - self._loop.time())

    async def _show(self, wanted: _PendingCaption) -> None:
        before = self._playback.generation
        generation = await self._playback.show(wanted.text)
        if generation > before or not (self._awaited or self._latencies):
            self._awaited.append((generation, wanted.received_s))
        self._queue(protocol.Showing(generation, wanted.segment, wanted.revision, wanted.text))

    # Messages and frames to the client.

    async def _send(self) -> None:
        while True:
            item = await self._outbox.get()
            if isinstance(item, str):
                await self._push(item)
            elif self._playback.is_current(item):
                await self._send_frame(item)

    async def _send_frame(self, made: SessionFrame) -> None:
        metrics, frame = self._services.metrics, made.frame
        start = time.perf_counter()
        payload = await self._loop.run_in_executor(
            self._services.encoders, encode, frame.pixels, made.format, made.quality
        )
        metrics.time("encode", 1000 * (time.perf_counter() - start))
        if not self._playback.is_current(made):
            return  # it went out of date while it was encoded
        height, width = frame.pixels.shape[:2]
        header = FrameHeader(
            made.format, made.generation, made.sequence, frame.pts, frame.time_base, width, height, len(payload)
        )
        start = time.perf_counter()
        await self._push(header.pack() + payload)
        metrics.time("send", 1000 * (time.perf_counter() - start))
        metrics.count("t2v_frames_sent_total")
        metrics.count("t2v_bytes_sent_total", len(payload))
        now = self._loop.time()
        self._sent += 1
        self._fps.add(now)
        while self._awaited and self._awaited[0][0] <= made.generation:
            elapsed_ms = 1000 * (now - self._awaited.popleft()[1])
            self._latencies.append(elapsed_ms)
            metrics.time("caption", elapsed_ms)

    async def _push(self, data: Union[str, bytes]) -> None:
        """Send. If the client does not read, stop its frames after `SLOW_S`, and cut its connection after `stall_s`.

        The pings of websockets cannot do that. They wait in the same queue, behind the unread data.
        """
        guards = (
            self._loop.call_later(SLOW_S, self._reads.clear),
            self._loop.call_later(self._services.limits.stall_s, self._abort),
        )
        try:
            await self._socket.send(data)
        finally:
            for guard in guards:
                guard.cancel()
            self._reads.set()

    def _abort(self) -> None:
        self.stop(ProtocolError("too_slow", "the client does not read what it is sent", "read faster, or ask for less"))
        self._socket.transport.abort()

    def _queue(self, message: protocol.ServerMessage) -> None:
        if not self._outbox.put_text(protocol.write(message)):
            self._abort()

    def _refuse(self, error: T2VError) -> None:
        """Report a refusal to the client. Raise it if it ends the session."""
        refusal = _refusal(error)
        if refusal.code == BYE or protocol.Error.of(refusal).fatal:
            raise refusal from error
        self._services.metrics.count("t2v_refused_total", code=refusal.code)
        self._queue(protocol.Error.of(refusal))

    def _stats(self) -> protocol.Stats:
        latency = Latency.of(list(self._latencies))
        return protocol.Stats(
            self._loop.time() - self._start_s,
            self.fps,
            self._sent,
            self._outbox.dropped,
            self._captions,
            self._playback.generation,
            latency.median_ms,
            latency.p95_ms,
            self.live.divisor,
        )

    def _why(self, tasks: list[asyncio.Future[Any]]) -> ProtocolError:
        """The reason why the session's tasks ended."""
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        if self._playback.failed.done():
            errors.append(self._playback.failed.result())
        for error in errors:
            if isinstance(error, T2VError):
                return _refusal(error)
            if error is not None and not isinstance(error, ConnectionClosed):
                _LOG.error("session %s failed", self.name, exc_info=error)
                return ProtocolError("internal", "the session failed", "see the server's log")
        return ProtocolError(GONE, "the client is gone", "connect again")


def _refusal(error: T2VError) -> ProtocolError:
    """An error of this package as an error of the protocol."""
    if isinstance(error, ProtocolError):
        return error
    code = "internal"
    if isinstance(error, (CaptionError, UsageError)):
        code = "caption" if isinstance(error, CaptionError) else "bad_value"
    message, _, remedy = str(error).partition("; ")
    return ProtocolError(code, message, remedy or "change the request")
