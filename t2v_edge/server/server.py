"""The live server: it accepts clients, or refuses them, and runs their sessions."""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from typing import Any, Callable, Optional

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from t2v_edge.errors import ProtocolError, ServerError
from t2v_edge.live.stats import LiveCounts
from t2v_edge.remote import protocol
from t2v_edge.server.access import Access
from t2v_edge.server.budget import PixelBudget
from t2v_edge.server.connection import GuardedConnection, PendingConnections
from t2v_edge.server.limits import Limits
from t2v_edge.server.metrics import CONTENT_TYPE, Labels, Metrics, frame_gauges, process_gauges
from t2v_edge.server.mjpeg.listener import MjpegListener
from t2v_edge.server.pages import Pages, only_reading
from t2v_edge.server.playback import PlayableStream
from t2v_edge.server.session import BYE, GONE, Session, SharedServices
from t2v_edge.server.sockets import keep_short

PATH = "/live"
FLOOD_CLOSE_S = 0.5
_LOG = logging.getLogger(__name__)
_WIRE_LOG = logging.getLogger(f"{__name__}.websockets")
# A trace for each connection that is cut off in its handshake, by versions of websockets before 17.
_WIRE_LOG.addFilter(lambda record: record.msg != "opening handshake failed")
_STOPPING = ProtocolError("stopping", "the server stops", "connect again later")


@dataclass(frozen=True)
class ServerOptions:
    """The server's address, rules and limits.

    settings: for clients that ask for nothing else. None of them is None.
    port: 0 for any free one.
    tls: None for plain TCP.
    mjpeg_port: also serve MJPEG over HTTP there. 0 for any free port, None for no MJPEG.
    """

    settings: protocol.Settings
    access: Access = Access()
    port: int = 8765
    tls: Optional[ssl.SSLContext] = None
    limits: Limits = Limits()
    mjpeg_port: Optional[int] = None


class LiveServer:
    """A server of streams. It accepts clients from the entry of its ``async with`` block to the exit.

    Entering raises `ServerError` if the address cannot be bound.

    open_stream: makes a stream of the given settings. Worker threads call it.
    bundle, base_fps: the model's name and frames a second, for the welcome.
    """

    def __init__(
        self,
        open_stream: Callable[[protocol.Settings], PlayableStream],
        bundle: str,
        base_fps: Fraction,
        options: ServerOptions,
    ) -> None:
        self.options = options
        self.metrics = Metrics()
        self._pages = Pages()
        self._open_stream = open_stream
        self._bundle = bundle[:256]
        self._base_fps = base_fps
        self._sessions: set[Session] = set()
        self._running: set[asyncio.Future[Any]] = set()
        self.pending = PendingConnections(options.limits, self.metrics)
        self._budget = PixelBudget(options.limits.pixels_per_s, options.settings)
        # Of the sessions that ended: the counts of their streams, and the frames not sent.
        self._past, self._past_unsent = LiveCounts(), 0
        self._stopping = False
        self._server: Any = None
        self._services: Optional[SharedServices] = None
        self.mjpeg = None if options.mjpeg_port is None else MjpegListener(self, options.mjpeg_port)

    async def __aenter__(self) -> LiveServer:
        limits, access = self.options.limits, self.options.access
        # A client has at most one encoding and one call at a time. With a thread for each, none waits for another's.
        encoders, callers = (ThreadPoolExecutor(limits.clients, name) for name in ("encode", "call"))
        self._services = SharedServices(self._open, encoders, callers, limits, self.metrics, self._budget)
        try:
            # Frames are compressed already. With a write limit of one byte, `send` waits until the kernel has it all.
            self._server = await serve(
                self._handle,
                access.host,
                self.options.port,
                ssl=self.options.tls,
                create_connection=partial(GuardedConnection, pending=self.pending, limits=limits),
                logger=_WIRE_LOG,
                compression=None,
                server_header=None,
                process_request=only_reading(self._answer),
                max_size=protocol.MAX_MESSAGE_BYTES,
                max_queue=4,
                write_limit=1,
                open_timeout=limits.hello_s,
                ping_interval=limits.ping_s,
                ping_timeout=limits.ping_s,
                close_timeout=limits.stop_s,
            )
        except OSError as error:
            self._close_pools()
            raise ServerError(
                f"{access.host}:{self.options.port} cannot be bound ({error}); choose another --host or "
                "--port, or 0 for any free port"
            ) from error
        if self.mjpeg is not None:
            try:
                await self.mjpeg.open()
            except ServerError:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all sessions, wait a limited time for the clients, and close everything."""
        self._stopping = True
        for session in list(self._sessions):
            session.stop(_STOPPING)
        if self._running:
            await asyncio.wait(self._running, timeout=2 * self.options.limits.stop_s)
        if self.mjpeg is not None:
            await self.mjpeg.close()
        self._server.close()
        await self._server.wait_closed()
        self._close_pools()

    @property
    def client_count(self) -> int:
        """The number of open sessions."""
        return len(self._sessions)

    @property
    def waiting_count(self) -> int:
        """The number of connections without a hello yet."""
        return len(self.pending)

    @property
    def port(self) -> int:
        """The bound port."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The address for clients."""
        host = self.options.access.host
        shown = f"[{host}]" if ":" in host else host
        return f"{'ws' if self.options.tls is None else 'wss'}://{shown}:{self.port}{PATH}"

    @property
    def page_url(self) -> str:
        """The page's address for a browser on this machine."""
        return (
            self.url.replace("ws", "http", 1)[: -len(PATH)]
            .replace("//0.0.0.0:", "//127.0.0.1:")
            .replace("//[::]:", "//[::1]:")
            + "/"
        )

    # Plain HTTP requests, among them those to open a WebSocket.

    def _answer(self, connection: Any, request: Any) -> Any:
        """The response to a request. None opens the WebSocket."""
        path = request.path.partition("?")[0]
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        bearer = headers.get("authorization")
        known = bearer is not None and self.options.access.knows(bearer.partition("Bearer ")[2])
        if path == "/healthz":
            status = HTTPStatus.SERVICE_UNAVAILABLE if self._stopping else HTTPStatus.OK
            return connection.respond(status, "stopping\n" if self._stopping else "ok\n")
        if bearer is not None and self.options.access.token is not None and not known:
            return self._refuse(connection, HTTPStatus.UNAUTHORIZED, "token", "the token is wrong")
        if path == "/metrics":
            if self.options.access.token is not None and not known:
                return self._refuse(connection, HTTPStatus.UNAUTHORIZED, "token", "send Authorization: Bearer TOKEN")
            response = connection.respond(HTTPStatus.OK, self._metrics_text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if path != PATH:
            return self._pages.answer(connection, request) or connection.respond(
                HTTPStatus.NOT_FOUND, f"not here; the page is at / and the stream at {PATH}\n"
            )
        if not self.options.access.allows_origin(headers.get("origin"), headers.get("host")):
            why = "this page may not connect; start the server with --origin and the page's own"
            return self._refuse(connection, HTTPStatus.FORBIDDEN, "origin", why)
        if self._stopping:
            return self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the server stops")
        if len(self._sessions) >= self.options.limits.clients:
            response = self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, "capacity", str(self._full()))
            response.headers["Retry-After"] = "5"
            return response
        connection.known = known
        return None

    def _refuse(self, connection: Any, status: HTTPStatus, code: str, why: str) -> Any:
        self.metrics.count("t2v_refused_total", code=code)
        return connection.respond(status, f"{why}\n")

    def _full(self) -> ProtocolError:
        return ProtocolError(
            "capacity", f"the server has {len(self._sessions)} clients, as many as it takes", "try again later"
        )

    def _metrics_text(self) -> str:
        gauges: dict[tuple[str, Labels], float] = {
            ("t2v_clients", ()): len(self._sessions),
            ("t2v_fps", ()): sum((s.fps for s in self._sessions), 0.0),
        }
        counts, unsent = self._past, self._past_unsent
        for session in self._sessions:
            live = session.live
            counts, unsent = live.after(counts), unsent + session.counts[1]
            shares = {("t2v_queue_depth", (("stage", stage),)): depth for stage, depth in session.depths.items()}
            shares["t2v_quality_clients", (("divisor", str(live.divisor)),)] = 1
            for key, value in shares.items():
                gauges[key] = gauges.get(key, 0) + value
        return self.metrics.to_text({**gauges, **frame_gauges(counts, unsent), **process_gauges()})

    def _open(self, settings: protocol.Settings) -> PlayableStream:
        stream = self._open_stream(settings)
        stream.tell_times(self.metrics.time)
        return stream

    # A WebSocket from its opening to its end.

    async def _handle(self, socket: Any) -> None:
        keep_short(socket.transport.get_extra_info("socket"))
        try:
            opened = await self._welcome(socket)
        except ProtocolError as error:
            await self._close(socket, error, [])
            return
        except ConnectionClosed:
            return
        await self.play(socket, *opened)

    async def play(self, socket: Any, session: Session, version: int) -> None:
        """Run an admitted session to its end, and close its connection."""
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running.add(running)
        try:
            await self._play(socket, session, version)
        finally:
            self._running.discard(running)
            running.cancel()

    async def _play(self, socket: Any, session: Session, version: int) -> None:
        try:
            why = await session.run(version, self._bundle, self._base_fps)
            if why.code == "too_fast":
                await asyncio.sleep(self.options.limits.penalty_s)
        finally:
            self._sessions.discard(session)
            self._budget.release(session)
            self._past = session.live.after(self._past)
            self._past_unsent += session.counts[1]
        _LOG.info("session %s ended: %s", session.name, why.code)
        await self._close(socket, why, session.take_unsent())

    async def _welcome(self, socket: Any) -> tuple[Session, int]:
        """Read the hello, and admit the client. Returns its session and the protocol's version."""
        try:
            data = await asyncio.wait_for(socket.recv(), self.options.limits.hello_s)
        except asyncio.TimeoutError as error:
            raise ProtocolError("hello", "no hello came in time", "send it first") from error
        hello = protocol.read_client(data)
        if not isinstance(hello, protocol.Hello):
            raise ProtocolError("hello", f"the first message is a {hello.type}", "send a hello first")
        if not socket.known and not self.options.access.knows(hello.token):
            raise ProtocolError("token", "the token is missing or wrong", "send the server's token in hello")
        version = protocol.negotiate(hello.versions)
        session = self.admit(socket, hello.settings)
        socket.admit(session.stop)
        return session, version

    def admit(self, socket: Any, asked: protocol.Settings) -> Session:
        """A new session. It holds its place from here on. Raises `ProtocolError`."""
        if self._stopping:
            raise _STOPPING
        if len(self._sessions) >= self.options.limits.clients:
            raise self._full()
        assert self._services is not None
        settings = self.options.settings.changed_by(asked)
        session = Session(socket, secrets.token_hex(4), self._services, settings)
        self._sessions.add(session)
        self.metrics.count("t2v_sessions_total")
        return session

    async def _close(self, socket: Any, why: ProtocolError, texts: list[str]) -> None:
        """Send the reason, and close. A client that does not read is cut off."""
        if why.code not in (BYE, GONE, _STOPPING.code):
            self.metrics.count("t2v_refused_total", code=why.code)
        # After a flood the client's messages are not read any more, so its close frame would never be seen.
        stop_s = self.options.limits.stop_s
        limit_s = min(FLOOD_CLOSE_S, stop_s) if why.code == "too_fast" else stop_s
        try:
            await asyncio.wait_for(self._send_end(socket, why, texts), limit_s)
        except (asyncio.TimeoutError, ConnectionClosed):
            pass
        finally:
            socket.transport.abort()

    async def _send_end(self, socket: Any, why: ProtocolError, texts: list[str]) -> None:
        if why.code == GONE:
            return
        for text in texts:
            await socket.send(text)
        if why.code == BYE:
            await socket.send(protocol.write(protocol.Bye("done")))
            await socket.close(1000)
            return
        if why.code == _STOPPING.code:
            await socket.send(protocol.write(protocol.Bye(why.message)))
        else:
            # The connection closes after this error, even if its code is not a fatal one elsewhere.
            await socket.send(protocol.write(replace(protocol.Error.of(why), fatal=True)))
        await socket.close(protocol.CLOSE_CODES.get(why.code, 1008), f"{why.code}: {why.message}"[:100])

    def _close_pools(self) -> None:
        if self._services is not None:
            with suppress(RuntimeError):
                self._services.encoders.shutdown(wait=False)
                self._services.callers.shutdown(wait=False)
