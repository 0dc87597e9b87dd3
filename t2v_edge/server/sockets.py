"""Options of sockets: short queues, because frames that wait there are old when they arrive."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Optional

UNSENT_BYTES = 32768


def keep_short(connection: Optional[socket.socket]) -> None:
    """Send at once, and let the kernel hold at most about `UNSENT_BYTES` (Linux, macOS).

    Without this its send buffer grows to megabytes. For a slow client that is seconds of small frames.
    """
    if connection is None:
        return
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if lowat is not None:
            connection.setsockopt(socket.IPPROTO_TCP, lowat, UNSENT_BYTES)


def keep_alive(connection: Optional[socket.socket], idle_s: float) -> None:
    """Let the kernel notice within about two times `idle_s` that an idle connection's other side is gone."""
    if connection is None:
        return
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    times = (("TCP_KEEPIDLE", idle_s), ("TCP_KEEPINTVL", idle_s / 3), ("TCP_KEEPCNT", 3))
    for name, value in times:
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, option, max(1, int(value)))
