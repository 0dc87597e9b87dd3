"""A client of the live server (docs/protocol.md). Needs the ``[serve]`` extra.

    with Client.connect("ws://127.0.0.1:8765/live") as client:
        client.caption("a person is waving")
        for frame in client.frames():
            show(frame.pixels)

`AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Optional, TypeVar

from t2v_edge.errors import ClientError
from t2v_edge.remote.async_client import AsyncClient, LiveFrame, Rate
from t2v_edge.remote.protocol import Error, State, Stats, Welcome

__all__ = ["AsyncClient", "Client", "LiveFrame"]
T = TypeVar("T")


class Client:
    """An `AsyncClient` on a thread of its own; methods may be called from any thread, also while another iterates."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread, inner: AsyncClient) -> None:
        self._loop = loop
        self._thread = thread
        self._inner = inner

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: Optional[str] = None,
        fps: Rate = None,
        size: Optional[tuple[int, int]] = None,
        seed: Optional[int] = None,
        format: Optional[str] = None,
        quality: Optional[int] = None,
        tls: Optional[ssl.SSLContext] = None,
        timeout_s: float = 10.0,
        retry_s: float = 0.0,
    ) -> Client:
        """Connect and be welcomed; what is None is as the server likes it.

        retry_s: for how long a connection that is lost is tried again, 0 for not at all. tls: for wss, None for the
        system's trust. timeout_s: for a connection and each answer. Raises `ClientError` or `ProtocolError`.
        """
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="t2v-edge-client", daemon=True)
        thread.start()
        try:
            inner = asyncio.run_coroutine_threadsafe(
                AsyncClient.connect(
                    url,
                    token=token,
                    fps=fps,
                    size=size,
                    seed=seed,
                    format=format,
                    quality=quality,
                    tls=tls,
                    timeout_s=timeout_s,
                    retry_s=retry_s,
                ),
                loop,
            ).result()
        except BaseException:
            _end(loop, thread)
            raise
        return cls(loop, thread, inner)

    @property
    def welcome(self) -> Welcome:
        """What the server said first."""
        return self._inner.welcome

    @property
    def errors(self) -> tuple[Error, ...]:
        """The newest errors that were not fatal, for example of a caption that could not be read."""
        return tuple(self._inner.errors)

    def caption(self, text: str, *, final: bool = True, segment: Optional[int] = None, revision: int = 0) -> None:
        """Show `text`. Without `segment` it revises the one before, if that was not final, or is a new one."""
        self._do(self._inner.caption(text, final=final, segment=segment, revision=revision))

    def pause(self) -> State:
        """Once this returns no frame is given until `resume`."""
        return self._do(self._inner.pause())

    def resume(self) -> State:
        return self._do(self._inner.resume())

    def reset(self, seed: Optional[int] = None) -> State:
        """Start the motion anew."""
        return self._do(self._inner.reset(seed))

    def set(
        self,
        *,
        fps: Rate = None,
        size: Optional[tuple[int, int]] = None,
        format: Optional[str] = None,
        quality: Optional[int] = None,
    ) -> State:
        """Change settings; gives all of them. Raises `ProtocolError` where the server cannot."""
        return self._do(self._inner.set(fps=fps, size=size, format=format, quality=quality))

    def stats(self) -> Stats:
        """What the server counts of this session."""
        return self._do(self._inner.stats())

    def frames(self) -> Iterator[LiveFrame]:
        """The newest frame, as they come; ends when the client is closed or the server stops.

        Raises `ClientError` where the connection is lost for good, `ProtocolError` where the server ended the session.
        """
        while not self._loop.is_closed():
            frame = self._do(self._inner.next_frame())
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Say goodbye. May be called often."""
        if not self._loop.is_closed():
            self._do(self._inner.close())
            _end(self._loop, self._thread)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ClientError("the client is closed; connect again")
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()  # Ctrl-C in this thread is no reason for the other to go on
            raise


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
