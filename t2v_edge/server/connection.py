"""Connections before their messages: how many wait, and how many bytes and frames one may send."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from typing import Any, Callable

from websockets.asyncio.server import ServerConnection

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.protocol import MAX_MESSAGE_BYTES
from t2v_edge.server.limits import Limits, RateLimit
from t2v_edge.server.metrics import Metrics

SLICE_BYTES = 1024
"""Bytes that are parsed before the budgets are looked at again: at most about 170 empty frames."""
LEAST_BYTES = 256
"""Bytes that one read counts for, at least, because each read costs as much time."""
FRAMES_PER_MESSAGE = 4
"""Frames that a client may send for each message: a ping or pong, and a message in parts."""
FIRST_FRAMES, FIRST_BYTES = 16, 4 * MAX_MESSAGE_BYTES
"""Frames and bytes of a connection before its hello is taken."""
MAX_ADDRESSES = 1024
LOG_EVERY_S = 60.0
_LOG = logging.getLogger(__name__)


class PendingConnections:
    """All connections of a server that have not been admitted yet, whatever their port.

    `ended`: connections that were cut off because there were too many.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.ended = 0
        self._limits, self._metrics = limits, metrics
        self._held: dict[str, dict[Any, Callable[[], None]]] = {}
        self._rates: OrderedDict[str, RateLimit] = OrderedDict()
        self._logged_s = float("-inf")
        self._logged = self._aside = 0

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, address: str, connection: Any, transport: Any) -> None:
        """Note a new connection. Cut it off, or another, if there are too many. Call it on the event loop."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if not self._rate(address, now_s).take(now_s):
            self._count(now_s)
            self.set_aside(transport)
            return
        self._held.setdefault(address, {})[connection] = transport.abort
        if len(self) > self._limits.waiting:
            crowded = max(self._held, key=lambda one: len(self._held[one]))
            oldest = next(iter(self._held[crowded]))
            self._held[crowded][oldest]()
            self.discard(crowded, oldest)
            self._count(now_s)

    def set_aside(self, transport: Any) -> None:
        """Read nothing more of a connection, and cut it off later. Cut off at once, it would come back at once."""
        if self._aside >= self._limits.waiting:
            transport.abort()
            return
        self._aside += 1
        transport.pause_reading()
        asyncio.get_running_loop().call_later(self._limits.penalty_s, self._end, transport)

    def _end(self, transport: Any) -> None:
        self._aside -= 1
        transport.abort()

    def discard(self, address: str, connection: Any) -> None:
        """Forget a connection that was admitted, or is gone."""
        held = self._held.get(address, {})
        held.pop(connection, None)
        if not held:
            self._held.pop(address, None)

    def _rate(self, address: str, now_s: float) -> RateLimit:
        per_s = self._limits.connections_per_s
        rate = self._rates.setdefault(address, RateLimit(per_s, 2 * per_s, now_s))
        self._rates.move_to_end(address)
        if len(self._rates) > MAX_ADDRESSES:
            self._rates.popitem(last=False)
        return rate

    def _count(self, now_s: float) -> None:
        self.ended += 1
        self._metrics.count("t2v_refused_total", code="waiting")
        if now_s - self._logged_s >= LOG_EVERY_S:
            most = self._limits.waiting
            _LOG.warning(
                "%d connections were cut off: more than %d waited without a hello", self.ended - self._logged, most
            )
            self._logged_s, self._logged = now_s, self.ended


class GuardedConnection(ServerConnection):  # type: ignore[misc]
    """A WebSocket that counts what it gets before it parses it.

    After too much has come, nothing more is read. address: the client's, without its port. known: whether its request
    had the right token.
    """

    def __init__(self, *arguments: Any, pending: PendingConnections, limits: Limits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        now_s = self.loop.time()
        self.address = ""
        self.known = False
        self._on_excess: Callable[[ProtocolError], object] = lambda _: pending.set_aside(self.transport)
        self._pending, self._limits = pending, limits
        self._excess = False
        self._frames = RateLimit(limits.messages_per_s, FIRST_FRAMES, now_s)
        self._bytes = RateLimit(limits.messages_per_s, FIRST_BYTES, now_s)

    def admit(self, on_excess: Callable[[ProtocolError], object]) -> None:
        """Let it send as much as a session may. on_excess: gets the error when more comes."""
        self._pending.discard(self.address, self)
        self._on_excess = on_excess
        per_s, burst, now_s = self._limits.messages_per_s, self._limits.burst, self.loop.time()
        self._frames = RateLimit(FRAMES_PER_MESSAGE * per_s, FRAMES_PER_MESSAGE * burst, now_s)
        self._bytes = RateLimit(MAX_MESSAGE_BYTES * per_s, MAX_MESSAGE_BYTES * burst, now_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.address = address_of(transport)
        self._pending.add(self.address, self, self.transport)

    def connection_lost(self, exc: Any) -> None:
        self._pending.discard(self.address, self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        cost = max(LEAST_BYTES, len(data))
        for at in range(0, len(data), SLICE_BYTES):
            if self._excess or not self._bytes.take(self.loop.time(), min(cost, SLICE_BYTES)):
                self._exceed()
                return
            super().data_received(data[at : at + SLICE_BYTES])

    def process_event(self, event: Any) -> None:
        if self.request is not None and not self._frames.take(self.loop.time()):
            self._exceed()
        elif not self._excess:
            super().process_event(event)

    def _exceed(self) -> None:
        if not self._excess:
            self._excess = True
            self.transport.pause_reading()
            self._on_excess(ProtocolError("too_fast", "too many frames or bytes came", "send captions as they change"))


def address_of(transport: Any) -> str:
    """The other side's address without its port. Of IPv6, the network that one site has: 64 bits."""
    peer = transport.get_extra_info("peername")
    host = str(peer[0]).partition("%")[0] if isinstance(peer, tuple) else ""
    return str(ipaddress.ip_network((host, 64), strict=False)) if ":" in host else host
