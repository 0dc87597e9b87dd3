"""An asyncio client of the live server (docs/protocol.md). Needs the ``[serve]`` extra.

Example::

    async with await AsyncClient.connect("ws://127.0.0.1:8765/live") as client:
        await client.caption("a person is waving")
        async for frame in client.frames():
            show(frame.pixels)
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from fractions import Fraction
from typing import Any, Callable, Optional, TypeVar, Union

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from t2v_edge.errors import ClientError, ProtocolError
from t2v_edge.play.clock import exact
from t2v_edge.remote import protocol
from t2v_edge.remote.frame import LiveFrame
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.options import ClientOptions

_LOG = logging.getLogger(__name__)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_TEMPORARY = ("capacity", "stopping", "internal")
_TEMPORARY_STATUS = (429, 502, 503, 504)
_ERRORS = 16
_NOTHING = protocol.Settings()
Rate = Union[int, float, Fraction, str, None]
T = TypeVar("T")
C = TypeVar("C", bound="AsyncClient")


class AsyncClient:
    """A client of the live server for asyncio. Use it on the event loop that connected it.

    It keeps the newest frame only. With `retry_s` a lost connection is opened again. The new session gets the
    same settings, pause and caption, and its frames start from the beginning.

    welcome: the server's first message.
    errors: the newest errors that did not end the session, for example a caption that the model cannot read.
    """

    def __init__(self, options: ClientOptions) -> None:
        self.options = options
        self.errors: deque[protocol.Error] = deque(maxlen=_ERRORS)
        self.welcome: protocol.Welcome
        self._settings = options.settings
        self._socket: Any = None
        self._reader: Optional[asyncio.Task[None]] = None
        self._frame: Optional[LiveFrame] = None
        self._changed = asyncio.Event()
        self._ended: Optional[Exception] = None
        self._closed = False
        self._paused = False
        self._newest = 0
        self._text = ""
        self._segment = -1
        self._revision = 0
        self._last: Optional[protocol.Caption] = None
        self._states: deque[asyncio.Future[protocol.State]] = deque()
        self._stats: deque[asyncio.Future[protocol.Stats]] = deque()

    @classmethod
    async def connect(
        cls: type[C],
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
    ) -> C:
        """Open a session (see `ClientOptions`). The server chooses each setting that is None.

        Raises `ClientError` if there is no server, `ProtocolError` if the server refuses the session.
        """
        settings = protocol.Settings(None if fps is None else exact(fps, "fps"), size, seed, format, quality)
        client = cls(ClientOptions(url, token, settings, tls, timeout_s, retry_s))
        await client._retry(client._open)
        client._reader = asyncio.ensure_future(client._run())
        return client

    async def caption(self, text: str, *, final: bool = True, segment: Optional[int] = None, revision: int = 0) -> None:
        """Show `text`. Without `segment` it replaces the caption before if that was not final, else it is a new one.

        While a lost connection is being opened again, the newest caption is kept and sent later.
        """
        if segment is not None:
            self._segment, self._revision = segment, revision
        elif self._last is not None and not self._last.final:
            self._revision += 1
        else:
            self._segment, self._revision = self._segment + 1, 0
        self._last = protocol.Caption(self._segment, self._revision, text, final)
        await self._send(self._last, later=True)

    async def pause(self) -> protocol.State:
        """Pause. After this returns, no frame comes until `resume`."""
        return await self._control("pause")

    async def resume(self) -> protocol.State:
        return await self._control("resume")

    async def reset(self, seed: Optional[int] = None) -> protocol.State:
        """Start the motion again from the beginning, with `seed` if it is given."""
        return await self._control("reset", protocol.Settings(seed=seed))

    async def set(
        self,
        *,
        fps: Rate = None,
        size: Optional[tuple[int, int]] = None,
        format: Optional[str] = None,
        quality: Optional[int] = None,
    ) -> protocol.State:
        """Change settings and return all of them. Raises `ProtocolError` if the server cannot."""
        rate = None if fps is None else exact(fps, "fps")
        return await self._control("set", protocol.Settings(rate, size, None, format, quality))

    async def stats(self) -> protocol.Stats:
        """The server's figures of this session."""
        return await self._ask(protocol.StatsRequest(), self._stats)

    async def frames(self) -> AsyncIterator[LiveFrame]:
        """Frames as they come, until the client is closed or the server stops.

        Raises `ClientError` if the connection is lost for good, `ProtocolError` if the server ended the session.
        """
        while True:
            frame = await self.next_frame()
            if frame is None:
                return
            yield frame

    async def next_frame(self) -> Optional[LiveFrame]:
        """The newest frame not returned yet. None when no more will come. Raises like `frames`."""
        while self._frame is None:
            if self._closed:
                return None
            if self._ended is not None:
                if isinstance(self._ended, ProtocolError) and self._ended.code == "stopping":
                    return None
                raise self._ended
            self._changed.clear()
            await self._changed.wait()
        frame, self._frame = self._frame, None
        return frame

    async def close(self) -> None:
        """End the session. A second call does nothing."""
        self._closed = True
        self._changed.set()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            try:
                await asyncio.wait_for(self._socket.send(protocol.write(protocol.Bye("done"))), 1)
                await self._socket.close()
            except (ConnectionClosed, asyncio.TimeoutError):
                pass
            finally:
                self._socket.transport.abort()
        self._fail_waiters(ClientError("the client is closed; connect again"))

    async def __aenter__(self: C) -> C:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # The connection.

    async def _open(self) -> None:
        """Open a connection, exchange hello and welcome, and send the pause and the caption of the session before."""
        options, more = self.options, {} if self.options.tls is None else {"ssl": self.options.tls}
        try:
            socket = await connect(
                options.url,
                compression=None,
                open_timeout=options.timeout_s,
                close_timeout=1,
                max_size=protocol.MAX_PAYLOAD_BYTES + 65536,
                max_queue=4,
                **more,
            )
        except InvalidStatus as error:
            status, body = error.response.status_code, bytes(error.response.body or b"").decode("utf-8", "replace")
            code = "capacity" if status in _TEMPORARY_STATUS else "token" if status == 401 else "refused"
            problem = f"{options.url} answered {status}: {body.strip()[:200]}"
            raise ProtocolError(code, problem, "do what it says") from error
        except (OSError, asyncio.TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, EOFError) as error:
            raise ClientError(
                f"{options.url} cannot be reached ({error or type(error).__name__}); "
                "start t2v-edge serve there, or correct the address"
            ) from error
        try:
            await socket.send(protocol.write(protocol.Hello(token=options.token, settings=self._settings)))
            first = protocol.read_server(await asyncio.wait_for(socket.recv(), options.timeout_s))
            if isinstance(first, protocol.Error):
                raise ProtocolError(first.code, first.message, first.remedy)
            if not isinstance(first, protocol.Welcome):
                problem = f"the server's first message is a {first.type}"
                raise ProtocolError("hello", problem, "connect to t2v-edge serve")
            if self._paused:
                await socket.send(protocol.write(protocol.Control("pause")))
            if self._last is not None:
                await socket.send(protocol.write(self._last))
        except (asyncio.TimeoutError, ConnectionClosed) as error:
            socket.transport.abort()
            raise ClientError(f"{options.url} gave no welcome ({error or 'in time'}); try again") from error
        except BaseException:
            socket.transport.abort()
            raise
        self.welcome, self._socket, self._newest = first, socket, 0

    async def _retry(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat `work` until it succeeds or `retry_s` is over. An error that would come again is raised at once."""
        loop = asyncio.get_running_loop()
        end_s, wait_s = loop.time() + self.options.retry_s, _FIRST_WAIT_S
        while True:
            try:
                return await work()
            except (ClientError, ProtocolError) as error:
                lasting = isinstance(error, ProtocolError) and error.code not in _TEMPORARY
                if lasting or loop.time() + wait_s > end_s:
                    raise
                _LOG.info("%s; trying again in %.2f s", error, wait_s)
            # Random waits, so that a server's clients do not all return at the same moment.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _run(self) -> None:
        """Read messages, over one connection after the other. An error that ends this is kept in `_ended`."""
        try:
            while True:
                why = await self._read()
                self._fail_waiters(why)
                if not self.options.retry_s or (isinstance(why, ProtocolError) and why.code not in _TEMPORARY):
                    raise why
                _LOG.info("%s; trying again", why)
                await self._retry(self._open)
        except (ClientError, ProtocolError) as error:
            self._ended = error
            self._changed.set()

    async def _read(self) -> Union[ClientError, ProtocolError]:
        """Read until the connection ends, and return why it ended."""
        why: Union[ClientError, ProtocolError, None] = None
        try:
            async for data in self._socket:
                if isinstance(data, bytes):
                    self._take_frame(data)
                    continue
                try:
                    message = protocol.read_server(data)
                except ProtocolError as error:
                    if error.code != "unknown_type":
                        raise
                    continue  # a message of a later version
                if isinstance(message, protocol.Bye):
                    why = why or ProtocolError("stopping", message.reason or "the server says goodbye", "connect again")
                elif isinstance(message, protocol.Error) and message.fatal:
                    why = ProtocolError(message.code, message.message, message.remedy)
                else:
                    self._take(message)
        except ConnectionClosed:
            pass
        except ProtocolError as error:  # the server breaks the protocol
            await self._socket.close(protocol.CLOSE_CODES.get(error.code, 1002), error.code)
            why = error
        return why or self._why_closed()

    def _why_closed(self) -> Union[ClientError, ProtocolError]:
        """The reason in the close frame. Older versions of websockets drop the messages not read before it."""
        code, colon, message = (self._socket.protocol.close_reason or "").partition(": ")
        if colon and code in protocol.CLOSE_CODES:
            return ProtocolError(code, message, "connect again")
        return ClientError(f"the connection to {self.options.url} is lost; connect again")

    def _take_frame(self, data: bytes) -> None:
        header, payload = FrameHeader.unpack(data)
        if header.generation >= self._newest and not self._paused:
            self._newest = header.generation
            self._frame = LiveFrame(header, payload, self._text)
            self._changed.set()

    def _take(self, message: protocol.ServerMessage) -> None:
        if isinstance(message, protocol.Showing):
            self._text = message.text
        elif isinstance(message, protocol.State):
            self._paused = message.paused
            self._settings = message.settings
            self._newest = max(self._newest, message.generation)
            if self._frame is not None and (message.paused or self._frame.header.generation < self._newest):
                self._frame = None
            _answer(self._states, message)
        elif isinstance(message, protocol.Stats):
            _answer(self._stats, message)
        elif isinstance(message, protocol.Error):
            if message.code == "bad_value" and self._states:
                _refuse(self._states, ProtocolError(message.code, message.message, message.remedy))
            else:
                self.errors.append(message)
                _LOG.warning("%s; %s", message.message, message.remedy)

    async def _send(self, message: protocol.ClientMessage, later: bool = False) -> None:
        """Send a message. later: if the connection is lost, the message can wait for the next one."""
        if self._ended is not None or self._closed:
            raise ClientError(f"there is no connection to {self.options.url}; connect again") from self._ended
        try:
            await self._socket.send(protocol.write(message))
        except ConnectionClosed as error:
            if not (later and self.options.retry_s):
                raise ClientError(f"the connection to {self.options.url} is lost; connect again") from error

    async def _control(self, action: str, settings: protocol.Settings = _NOTHING) -> protocol.State:
        return await self._ask(protocol.Control(action, settings), self._states)

    async def _ask(self, message: protocol.ClientMessage, waiters: deque[asyncio.Future[T]]) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiters.append(answer)
        try:
            await self._send(message)
            return await asyncio.wait_for(asyncio.shield(answer), self.options.timeout_s)
        except asyncio.TimeoutError as error:
            waited = f"{self.options.timeout_s:g} s"
            raise ClientError(f"{self.options.url} gave no answer in {waited}; try again") from error

    def _fail_waiters(self, why: Exception) -> None:
        while self._states:
            _refuse(self._states, why)
        while self._stats:
            _refuse(self._stats, why)


def _answer(waiters: deque[asyncio.Future[T]], message: T) -> None:
    """Give the answer to the first request that waits."""
    if waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(message)


def _refuse(waiters: deque[asyncio.Future[T]], why: Exception) -> None:
    """Raise the error in the first request that waits."""
    waiter = waiters.popleft()
    if not waiter.done():
        waiter.set_exception(why)
        waiter.exception()  # marks it as seen: the caller may have gone
