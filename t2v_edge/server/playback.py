"""The stream of one client. It is replaced by a new stream when its rate or size changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Protocol, TypeVar

from t2v_edge.errors import EngineError
from t2v_edge.frame import Frame
from t2v_edge.live.stats import LiveCounts
from t2v_edge.remote.protocol import Control, Settings
from t2v_edge.server.encode import check_format

T = TypeVar("T")


class PlayableStream(Protocol):
    """A stream that a session plays: `t2v_edge.LiveStream`, or a test's own. Every call but iteration may block.

    After `set_caption` or `reset` returns a generation, no frame of an older one comes.
    """

    def __aiter__(self) -> AsyncIterator[Frame]: ...

    def set_caption(self, caption: str) -> int: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def reset(self, seed: Optional[int] = None) -> int: ...

    def close(self) -> None: ...

    @property
    def counts(self) -> LiveCounts: ...

    def tell_times(self, tell: Callable[[str, float], None]) -> None:
        """Call `tell(stage, milliseconds)` for each measured time from now on, from any thread."""
        ...


@dataclass(frozen=True, eq=False)
class SessionFrame:
    """A frame of a session, with its generation and sequence there, and the format to send it in."""

    frame: Frame
    generation: int
    sequence: int
    format: str
    quality: int


class Playback:
    """A client's stream on the event loop. Calls that may block run in `callers`, one at a time, in order.

    Its methods raise what `open_stream` and the stream raise.

    open_stream: makes a stream of the given settings.
    grant: the settings that the server gives for those asked for.
    take: gets each frame.
    wanted: while it is not set, no frame is made.
    settings: the settings in force. None of them is None.
    generation: the newest. Frames of a lower one are out of date.
    made: the number of frames given to `take`.
    failed: gets the error if the stream fails.
    """

    def __init__(
        self,
        open_stream: Callable[[Settings], PlayableStream],
        callers: Executor,
        grant: Callable[[Settings], Settings],
        settings: Settings,
        take: Callable[[SessionFrame], None],
        wanted: asyncio.Event,
    ) -> None:
        self.settings = grant(settings)
        self._grant, self._asked = grant, settings
        self.generation = 0
        self.paused = False
        self.made = 0
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[Exception] = self._loop.create_future()
        self._open_stream = open_stream
        self._callers = callers
        self._take = take
        self._wanted = wanted
        self._lock = asyncio.Lock()
        self._stream: Optional[PlayableStream] = None
        self._pump: Optional[asyncio.Task[None]] = None
        self._caption: Optional[str] = None
        self._first = 0  # the session's generation of the stream's generation 0
        self._past = LiveCounts()

    async def open(self) -> None:
        """Open the first stream. It waits for a caption."""
        check_format(self.settings.format or "")
        self._start(await self._call(self._open_stream, self.settings))

    async def show(self, caption: str) -> int:
        """Change the caption. Returns the generation of its frames."""
        return await self._finish(self._show(caption))

    async def control(self, control: Control) -> None:
        """Carry out a control message. After this returns, no frame comes that the message rules out."""
        await self._finish(self._control(control))

    async def close(self) -> None:
        """Close the stream, after the calls that have begun."""
        await self._finish(self._close())

    @property
    def counts(self) -> LiveCounts:
        """The counts of all its streams so far."""
        return self._past if self._stream is None else self._stream.counts.after(self._past)

    def is_current(self, made: SessionFrame) -> bool:
        """Whether a frame may still be sent."""
        return not self.paused and made.generation >= self.generation

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish `work` even if the caller is cancelled. Otherwise a stream just opened would stay open."""

        async def locked() -> T:
            async with self._lock:
                return await work

        return await asyncio.shield(asyncio.ensure_future(locked()))

    async def _show(self, caption: str) -> int:
        generation = self._first + await self._call(self._open_one.set_caption, caption)
        self._caption = caption
        self.generation = max(self.generation, generation)
        return generation

    async def _control(self, control: Control) -> None:
        stream = self._open_one
        if control.action == "pause":
            self.paused = True
            await self._call(stream.pause)
        elif control.action == "resume":
            await self._call(stream.resume)
            self.paused = False
        elif control.action == "reset":
            await self._reset(control.settings.seed)
        else:
            await self._set(control.settings)

    async def _close(self) -> None:
        stream, pump = self._stream, self._pump
        self._stream = self._pump = None
        if pump is not None:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        if stream is not None:
            await self._call(stream.close)
            self._past = replace(stream.counts.after(self._past), queued=0)

    @property
    def _open_one(self) -> PlayableStream:
        if self._stream is None:
            raise EngineError("the stream is closed; connect again")
        return self._stream

    async def _reset(self, seed: Optional[int]) -> None:
        generation = self._first + await self._call(self._open_one.reset, seed)
        self.generation = max(self.generation, generation)
        if seed is not None:
            self.settings = replace(self.settings, seed=seed)

    async def _set(self, wanted: Settings) -> None:
        asked = self._asked.changed_by(wanted)
        check_format(asked.format or "")
        settings = self.settings.changed_by(wanted)
        if (wanted.fps, wanted.size, wanted.format) != (None, None, None):
            settings = self._grant(asked)
        if (settings.fps, settings.size) != (self.settings.fps, self.settings.size):
            try:
                await self._restart(settings)
            except BaseException:
                self._grant(self._asked)
                raise
        elif settings.seed != self.settings.seed:
            await self._reset(settings.seed)
        self.settings, self._asked = settings, asked

    async def _restart(self, settings: Settings) -> None:
        """Replace the stream by a new one. If that cannot be made, the old one goes on."""
        stream = await self._call(self._open_stream, settings)
        try:
            shown = None if self._caption is None else await self._call(stream.set_caption, self._caption)
            if self.paused:
                await self._call(stream.pause)
        except BaseException:
            await self._call(stream.close)
            raise
        await self._close()
        self.settings = settings
        self._first = self.generation + 1
        self.generation = self._first + (shown or 0)
        self._start(stream)

    def _start(self, stream: PlayableStream) -> None:
        self._stream = stream
        self._pump = asyncio.ensure_future(self._run(stream, self._first))

    async def _run(self, stream: PlayableStream, first: int) -> None:
        try:
            async for frame in stream:
                kind, quality = self.settings.format or "raw", self.settings.quality or 1
                self._take(SessionFrame(frame, first + frame.generation, self.made, kind, quality))
                self.made += 1
                await self._wanted.wait()
        except Exception as error:  # noqa: BLE001 - any error ends this session, and no other
            if not self.failed.done():
                self.failed.set_result(error)

    def _call(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return self._loop.run_in_executor(self._callers, function, *arguments)
