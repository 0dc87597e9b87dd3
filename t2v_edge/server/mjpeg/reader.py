"""One reader of an MJPEG stream. Its session uses it like a WebSocket: it sends frames and receives captions."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from http import HTTPStatus
from typing import Optional, Union

from websockets.exceptions import ConnectionClosedError

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import Caption, Error, Showing, Welcome, read_server, write
from t2v_edge.server.connection import address_of
from t2v_edge.server.limits import Limits, RateLimit

BOUNDARY = "t2v-edge-frame"
STATUS = {
    "bad_message": HTTPStatus.BAD_REQUEST,
    "bad_value": HTTPStatus.BAD_REQUEST,
    "caption": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_fast": HTTPStatus.TOO_MANY_REQUESTS,
    "token": HTTPStatus.UNAUTHORIZED,
    "origin": HTTPStatus.FORBIDDEN,
    "path": HTTPStatus.NOT_FOUND,
    "method": HTTPStatus.METHOD_NOT_ALLOWED,
    "name": HTTPStatus.CONFLICT,
    "hello": HTTPStatus.REQUEST_TIMEOUT,
    "capacity": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Error code -> HTTP status. Any other code is answered with 500."""
_EXTRA = {
    "token": "WWW-Authenticate: Bearer\r\n",
    "capacity": "Retry-After: 5\r\n",
    "stopping": "Retry-After: 5\r\n",
    "method": "Allow: GET, POST\r\n",
}
_NEWEST_CAPTIONS = 8


class MjpegReader:
    """The part of a WebSocket that a `Session` uses, over one HTTP answer without an end.

    The answer begins when the first caption is shown or refused, so that a refusal has its status. If neither comes
    soon, it begins without.

    name: the stream's name, for posts of captions.
    caption: the first caption. None waits for `post`.
    headers: more headers of the answer, each with its line end.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        name: str,
        caption: Optional[str],
        limits: Limits,
        headers: str = "",
    ) -> None:
        self.name = name
        self.transport = writer.transport
        self.address = address_of(self.transport)
        self._reader, self._writer = reader, writer
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        # The session counts the first caption as well, though it was not posted.
        self._rate = RateLimit(limits.messages_per_s, max(1, limits.burst - 1), self._loop.time())
        self._segment = 0
        self._captions: deque[str] = deque(maxlen=_NEWEST_CAPTIONS)
        self._news = asyncio.Event()
        self._waits_for_showing = caption is not None
        self._begun = self._gone = False
        self._timer: Optional[asyncio.TimerHandle] = None
        self._watch = asyncio.ensure_future(self._watch_reader())
        # A frame is sent when the buffer is empty. Until then the newest frame waits outside of it.
        self.transport.set_write_buffer_limits(high=0)
        if caption is not None:
            self._put(caption)
            self._timer = self._loop.call_later(limits.hello_s / 2, self._begin)

    def post(self, caption: str) -> None:
        """Show another caption. Raises `ProtocolError` if captions come too fast."""
        if not self._rate.take(self._loop.time()):
            raise ProtocolError("too_fast", "captions come too fast", "send them as they change, and not more often")
        self._put(caption)

    def _put(self, caption: str) -> None:
        self._captions.append(write(Caption(self._segment, 0, caption)))
        self._segment += 1
        self._news.set()

    async def _watch_reader(self) -> None:
        """End the session if the reader goes away, or sends more than its request."""
        with suppress(OSError):
            await self._reader.read(1)
        self._gone = True
        self._news.set()

    # Called by the session.

    def __aiter__(self) -> MjpegReader:
        return self

    async def __anext__(self) -> str:
        while not self._captions:
            if self._gone:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._captions.popleft()

    async def send(self, data: Union[str, bytes]) -> None:
        """Send a frame as one part. A message is not sent; some begin the answer. Raises `ConnectionClosedError`."""
        if isinstance(data, str):
            message = read_server(data)
            if isinstance(message, Error) and not self._begun:
                await self._refuse(ProtocolError(message.code, message.message, message.remedy))
            elif isinstance(message, Showing) or (isinstance(message, Welcome) and not self._waits_for_showing):
                self._begin()
            return
        header, payload = FrameHeader.unpack(data)
        self._begin()
        seconds = float(header.pts * header.time_base)
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(payload)}\r\nX-Timestamp: {seconds:.6f}\r\n"
        self._writer.write(f"{head}X-Generation: {header.generation}\r\n\r\n".encode())
        self._writer.write(payload)
        # The boundary follows its part at once, because readers show a part when they see its end.
        self._writer.write(f"\r\n--{BOUNDARY}\r\n".encode())
        await self._drain()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the answer after all sent data."""
        self.release()
        with suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()

    def release(self) -> None:
        """Cancel the task and the timer of this reader."""
        self._watch.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._writer.write(
                (
                    f"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary={BOUNDARY}\r\n"
                    f"Cache-Control: no-store\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n"
                    f"X-Stream-Name: {self.name}\r\n{self._headers}\r\n--{BOUNDARY}\r\n"
                ).encode()
            )

    async def _refuse(self, error: ProtocolError) -> None:
        self._begun = True
        self._writer.write(refusal(error))
        await self._drain()
        raise ConnectionClosedError(None, None)

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise ConnectionClosedError(None, None) from error


def refusal(error: ProtocolError) -> bytes:
    """A whole answer with the error's message and remedy."""
    return answer(
        STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR),
        f"{error.message}; {error.remedy}",
        _EXTRA.get(error.code, ""),
    )


def answer(status: HTTPStatus, text: str, headers: str = "") -> bytes:
    """A whole answer of plain text. headers: more headers, each with its line end."""
    body = f"{text}\n".encode()
    return (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
        f"X-Content-Type-Options: nosniff\r\n{headers}\r\n"
    ).encode() + body
