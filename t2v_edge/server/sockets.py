"""Queues of the operating system, kept short: what waits there is old when it arrives."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Optional

UNSENT_BYTES = 32768


def keep_short(connection: Optional[socket.socket]) -> None:
    """Let the kernel take at most about `UNSENT_BYTES` that it cannot send yet (Linux, macOS), and send at once.

    Left alone its send buffer grows to megabytes: seconds of small frames for a client that does not keep up.
    """
    if connection is None:
        return
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if lowat is not None:
            connection.setsockopt(socket.IPPROTO_TCP, lowat, UNSENT_BYTES)
