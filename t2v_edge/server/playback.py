"""The stream of one client: opened, steered, and made anew where its rate or size changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, Optional, Protocol, TypeVar

from t2v_edge.errors import EngineError
from t2v_edge.frame import Frame
from t2v_edge.live.stats import LiveCounts
from t2v_edge.remote.protocol import Control, Settings
from t2v_edge.server.encode import check_format

T = TypeVar("T")


class PlayableStream(Protocol):
    """What a session plays: `t2v_edge.LiveStream`, or a test's own. Everything but iterating may take a while.

    Once `set_caption` or `reset` has returned a generation, no frame of an older one is given.
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
        """Tell each (stage, milliseconds) from now on, from any thread."""
        ...


@dataclass(frozen=True, eq=False)
class SessionFrame:
    """A frame, its generation and its sequence in the session, and the format it is to be sent in."""

    frame: Frame
    generation: int
    sequence: int
    format: str
    quality: int


class Playback:
    """Lives on the event loop; what may take a while runs in `callers`, one thing at a time, as it was asked for.

    settings: in force; all are given. generation: the newest; frames of a lower one are out of date. made: frames given
    to `take` up to now. wanted: while it is not set, no frame is asked for. failed: set where the stream fails. Its
    methods raise what `open_stream` and the stream raise.
    """

    def __init__(
        self,
        open_stream: Callable[[Settings], PlayableStream],
        callers: Executor,
        settings: Settings,
        take: Callable[[SessionFrame], None],
        wanted: asyncio.Event,
    ) -> None:
        self.settings = settings
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
        """Open the first stream, which waits for a caption."""
        check_format(self.settings.format or "")
        self._start(await self._call(self._open_stream, self.settings))

    async def show(self, caption: str) -> int:
        """Change the caption; the generation of its frames."""
        return await self._finish(self._show(caption))

    async def steer(self, control: Control) -> None:
        """Do what a control message asks for; once this is done no frame comes that it rules out."""
        await self._finish(self._steer(control))

    async def close(self) -> None:
        """Close the stream, once what was begun is done."""
        await self._finish(self._close())

    @property
    def counts(self) -> LiveCounts:
        """Of all its streams up to now."""
        return self._past if self._stream is None else self._stream.counts.after(self._past)

    def is_current(self, made: SessionFrame) -> bool:
        """Whether a frame may still be sent."""
        return not self.paused and made.generation >= self.generation

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, whoever waits for it is cancelled or not: else a stream just opened would stay open."""

        async def locked() -> T:
            async with self._lock:
                return await work

        return await asyncio.shield(asyncio.ensure_future(locked()))

    async def _show(self, caption: str) -> int:
        generation = self._first + await self._call(self._open_one.set_caption, caption)
        self._caption = caption
        self.generation = max(self.generation, generation)
        return generation

    async def _steer(self, control: Control) -> None:
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
        changed = {f.name: getattr(wanted, f.name) for f in fields(wanted) if getattr(wanted, f.name) is not None}
        settings = replace(self.settings, **changed)
        check_format(settings.format or "")
        if (settings.fps, settings.size) != (self.settings.fps, self.settings.size):
            await self._restart(settings)
        elif settings.seed != self.settings.seed:
            await self._reset(settings.seed)
        self.settings = settings

    async def _restart(self, settings: Settings) -> None:
        """A new stream in place of the old one, which goes on where the new one cannot be made."""
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
                self._take(
                    SessionFrame(
                        frame,
                        first + frame.generation,
                        self.made,
                        self.settings.format or "raw",
                        self.settings.quality or 1,
                    )
                )
                self.made += 1
                await self._wanted.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this session and no other
            if not self.failed.done():
                self.failed.set_result(error)

    def _call(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        return self._loop.run_in_executor(self._callers, function, *arguments)
