"""A client of the live server for ordinary threads (docs/protocol.md). Needs the ``[serve]`` extra.

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
from typing import Any, Optional, TypeVar

from t2v_edge.errors import ClientError
from t2v_edge.remote.async_client import AsyncClient, Rate
from t2v_edge.remote.frame import LiveFrame
from t2v_edge.remote.protocol import Error, State, Stats, Welcome
from t2v_edge.util.closing import Closing

__all__ = ["AsyncClient", "Client", "LiveFrame"]
T = TypeVar("T")


class Client(Closing):
    """An `AsyncClient` on its own thread. Any thread may call its methods, also while another reads frames."""

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
        """Open a session, see `AsyncClient.connect`."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="t2v-edge-client", daemon=True)
        thread.start()
        try:
            asked: Any = {"fps": fps, "size": size, "seed": seed, "format": format, "quality": quality}
            opening = AsyncClient.connect(url, token=token, tls=tls, timeout_s=timeout_s, retry_s=retry_s, **asked)
            inner = asyncio.run_coroutine_threadsafe(opening, loop).result()
        except BaseException:
            _end(loop, thread)
            raise
        return cls(loop, thread, inner)

    @property
    def welcome(self) -> Welcome:
        """The server's first message."""
        return self._inner.welcome

    @property
    def errors(self) -> tuple[Error, ...]:
        """The newest errors that did not end the session, for example a caption that the model cannot read."""
        return tuple(self._inner.errors)

    def caption(self, text: str, *, final: bool = True, segment: Optional[int] = None, revision: int = 0) -> None:
        """Show `text`. Without `segment` it replaces the caption before if that was not final, else it is a new one."""
        self._do(self._inner.caption(text, final=final, segment=segment, revision=revision))

    def pause(self) -> State:
        """Pause. After this returns, no frame comes until `resume`."""
        return self._do(self._inner.pause())

    def resume(self) -> State:
        return self._do(self._inner.resume())

    def reset(self, seed: Optional[int] = None) -> State:
        """Start the motion again from the beginning, with `seed` if it is given."""
        return self._do(self._inner.reset(seed))

    def set(
        self,
        *,
        fps: Rate = None,
        size: Optional[tuple[int, int]] = None,
        format: Optional[str] = None,
        quality: Optional[int] = None,
    ) -> State:
        """Change settings and return all of them. Raises `ProtocolError` if the server cannot."""
        return self._do(self._inner.set(fps=fps, size=size, format=format, quality=quality))

    def stats(self) -> Stats:
        """The server's figures of this session."""
        return self._do(self._inner.stats())

    def frames(self) -> Iterator[LiveFrame]:
        """Frames as they come, the newest only, until the client is closed or the server stops.

        Raises `ClientError` if the connection is lost for good, `ProtocolError` if the server ended the session.
        """
        while not self._loop.is_closed():
            frame = self._do(self._inner.next_frame())
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """End the session. A second call does nothing."""
        if not self._loop.is_closed():
            self._do(self._inner.close())
            _end(self._loop, self._thread)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ClientError("the client is closed; connect again")
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()  # after Ctrl-C in this thread the other must not go on
            raise


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
