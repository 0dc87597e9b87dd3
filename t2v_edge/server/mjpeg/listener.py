"""A listener that serves streams as MJPEG over HTTP, for players that can only open an address (docs/protocol.md).

It has its own port, because the library websockets can only answer a plain request with a whole body, and a stream has
no end. Each reader has a session like any other client, with the same limits; see `MjpegReader`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Optional, Protocol

from t2v_edge.bundle.tokenizer import tidy
from t2v_edge.errors import ProtocolError, ServerError
from t2v_edge.remote.protocol import JPEG, MAX_TEXT, VERSION, Settings
from t2v_edge.server.access import Access
from t2v_edge.server.connection import address_of
from t2v_edge.server.mjpeg.reader import MjpegReader, answer, refusal
from t2v_edge.server.mjpeg.request import MAX_HEAD_BYTES, HttpRequest, parse_head
from t2v_edge.server.session import Session
from t2v_edge.server.sockets import keep_alive, keep_short
from t2v_edge.util.fields import Fields

MAX_UNREAD_BYTES = 1 << 20
"""Bytes that are read and dropped after an answer."""
STREAM, CAPTION = "/stream.mjpg", "/caption"
_KEYS = ("caption", "fps", "size", "seed", "quality", "name")
_NAME = re.compile("[A-Za-z0-9_-]{1,32}")
_SIZE = re.compile("([0-9]{1,5})x([0-9]{1,5})")
_NUMBER = re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?")


@dataclass(frozen=True)
class StreamRequest:
    """The query of a stream's address. caption: None to wait for one. name: the stream's, None for a random one."""

    settings: Settings
    caption: Optional[str]
    name: Optional[str]


class MjpegHost(Protocol):
    """The server that runs the readers' sessions."""

    options: Any
    metrics: Any
    pending: Any

    def admit(self, socket: Any, wanted: Settings) -> Session: ...

    async def play(self, socket: Any, session: Session, version: int) -> None: ...


class MjpegListener:
    """A listener on the server's event loop. `open` raises `ServerError` if `port` (0: any) cannot be bound."""

    def __init__(self, host: MjpegHost, port: int) -> None:
        self._host = host
        self._access: Access = host.options.access
        self._limits = host.options.limits
        self._wanted_port = port
        self._readers: dict[str, MjpegReader] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._server: Optional[asyncio.AbstractServer] = None

    async def open(self) -> None:
        tls = self._host.options.tls
        try:
            self._server = await asyncio.start_server(
                self._serve,
                self._access.host,
                self._wanted_port,
                limit=MAX_HEAD_BYTES,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._limits.hello_s,
            )
        except OSError as error:
            raise ServerError(
                f"{self._access.host}:{self._wanted_port} cannot be bound for MJPEG ({error}); choose "
                "another --mjpeg port, or 0 for any free port"
            ) from error

    async def close(self) -> None:
        """Accept no more readers, and cut off the present ones."""
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The bound port."""
        sockets: Any = getattr(self._server, "sockets", None)
        port: int = sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The stream's address."""
        host = self._access.host
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if self._host.options.tls is None else 'https'}://{shown}:{self.port}{STREAM}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, address = asyncio.current_task(), address_of(writer.transport)
        assert task is not None
        self._tasks.add(task)
        self._host.pending.add(address, writer, writer.transport)
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the reader is gone, or the server stops
        finally:
            self._tasks.discard(task)
            self._host.pending.discard(address, writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kernel = writer.get_extra_info("socket")
        keep_short(kernel)
        keep_alive(kernel, self._limits.ping_s)
        try:
            opened = await self._open(reader, writer)
        except ProtocolError as error:
            self._host.metrics.count("t2v_refused_total", code=error.code)
            writer.write(refusal(error))
        else:
            if isinstance(opened, bytes):
                writer.write(opened)
            else:
                mjpeg, session = opened
                self._readers[mjpeg.name] = mjpeg
                self._host.pending.discard(mjpeg.address, writer)
                try:
                    await self._host.play(mjpeg, session, VERSION)
                finally:
                    mjpeg.release()
                    del self._readers[mjpeg.name]
                return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._finish(reader, writer), self._limits.stop_s)

    async def _finish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End the connection after an answer. Unread data is read first, or the system would drop the answer."""
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        for _ in range(MAX_UNREAD_BYTES // MAX_HEAD_BYTES):
            if not await reader.read(MAX_HEAD_BYTES):
                break

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        """A whole answer, or an `MjpegReader` and its session. Raises `ProtocolError`."""
        try:
            request, body = await asyncio.wait_for(self._read(reader), self._limits.hello_s)
        except asyncio.TimeoutError as error:
            raise ProtocolError("hello", "no whole request came in time", "send it at once") from error
        return self._take_caption(request, body) if request.method == "POST" else self._admit(request, reader, writer)

    async def _read(self, reader: asyncio.StreamReader) -> tuple[HttpRequest, bytes]:
        """Read a request and its body. Raises `ProtocolError` if it must not be answered."""
        try:
            request = parse_head(await reader.readuntil(b"\r\n\r\n"))
            self._check(request)
            body = b""
            if request.method == "POST":
                body = await reader.readexactly(request.body_bytes(4 * MAX_TEXT))
        except asyncio.LimitOverrunError as error:
            raise ProtocolError(
                "too_large", f"the request's head has more than {MAX_HEAD_BYTES} bytes", "send less"
            ) from error
        except asyncio.IncompleteReadError as error:
            raise ProtocolError("bad_message", "the request is cut off", "send all of it") from error
        return request, body

    def _check(self, request: HttpRequest) -> None:
        """Check the path, the method, the page and the token. Raises `ProtocolError`."""
        allowed = {STREAM: "GET", CAPTION: "POST"}.get(request.path)
        if allowed is None:
            raise ProtocolError("path", "this is not here", f"the stream is at {STREAM}")
        if request.method != allowed:
            raise ProtocolError("method", f"{request.path} does not take {request.method}", f"send {allowed}")
        check_page(self._access, request.headers)
        if "token" in request.query:
            raise ProtocolError(
                "token",
                "a token in an address gets into the logs of proxies",
                "send Authorization: Bearer TOKEN, and make a new token",
            )
        if not self._access.knows(request.bearer):
            raise ProtocolError("token", "the token is missing or wrong", "send Authorization: Bearer TOKEN")

    def _admit(
        self, request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[MjpegReader, Session]:
        wanted = read_query(request.query)
        name = wanted.name or secrets.token_hex(8)
        if name in self._readers:
            raise ProtocolError("name", f"there is a stream named {name}", "take another name")
        origin = request.headers.get("origin")
        headers = (
            "Cross-Origin-Resource-Policy: same-origin\r\n"
            if origin is None
            else f"Cross-Origin-Resource-Policy: cross-origin\r\nAccess-Control-Allow-Origin: {origin}\r\n"
            "Vary: Origin\r\n"
        )
        mjpeg = MjpegReader(reader, writer, name, wanted.caption, self._limits, headers)
        try:
            return mjpeg, self._host.admit(mjpeg, wanted.settings)
        except BaseException:
            mjpeg.release()
            raise

    def _take_caption(self, request: HttpRequest, body: bytes) -> bytes:
        reader = self._readers.get(request.query.get("name", ""))
        if reader is None:
            remedy = f"open {STREAM}?name=NAME, then post to {CAPTION}?name=NAME"
            raise ProtocolError("path", "no stream has this name", remedy)
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError("bad_value", "the caption is not UTF-8", "send it as UTF-8") from error
        reader.post(_check_caption(text))
        return answer(HTTPStatus.ACCEPTED, "taken")


def check_page(access: Access, headers: dict[str, str]) -> None:
    """Check that the page which embeds the stream may do so. Raises `ProtocolError`.

    Programs send neither Origin nor Sec-Fetch-Site. Browsers send one or both, also for an <img> on a stranger's page.
    Without a token the Host must be an address. A stranger's name could point here (DNS rebinding), and then its pages
    would be of the same site.
    """
    origin, host = headers.get("origin"), headers.get("host")
    if origin is not None:
        welcome = access.allows_origin(origin, host)
    else:
        welcome = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if not welcome or (access.token is None and host is not None and not access.allows_host(host)):
        remedy = "start the server with --origin and the page's own, and ask with crossorigin"
        raise ProtocolError("origin", "this page may not embed the stream", remedy)


def read_query(query: dict[str, str]) -> StreamRequest:
    """Read the query of a stream's address. Raises `ProtocolError`."""
    unknown = sorted(set(query) - set(_KEYS))
    if unknown:
        raise ProtocolError("bad_value", f"{unknown[0][:40]!r} is not a stream's setting", f"use {', '.join(_KEYS)}")
    values: dict[str, Any] = {key: _number(query[key]) for key in ("fps", "seed", "quality") if key in query}
    if "size" in query:
        match = _SIZE.fullmatch(query["size"])
        if match is None:
            raise ProtocolError("bad_value", f"the size is {query['size'][:40]!r}", "write WIDTHxHEIGHT, as 512x512")
        values["size"] = [int(match[1]), int(match[2])]
    name = query.get("name")
    if name is not None and _NAME.fullmatch(name) is None:
        raise ProtocolError("bad_value", f"the name is {name[:40]!r}", "use 1 to 32 letters, digits, - and _")
    caption = query.get("caption")
    settings = replace(Settings.read(Fields(STREAM, values)), format=JPEG)
    return StreamRequest(settings, None if caption is None else _check_caption(caption), name)


def _number(text: str) -> Any:
    """The number in `text`. Any other text is returned as it is: it may be a fraction."""
    if _NUMBER.fullmatch(text) is None:
        return text
    return float(text) if "." in text else int(text)


def _check_caption(text: str) -> str:
    if len(text) > MAX_TEXT or not tidy(text):
        raise ProtocolError("bad_value", f"the caption has {len(text)} characters", f"send 1 to {MAX_TEXT} of text")
    return text
