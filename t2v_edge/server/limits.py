"""Limits of what one client, and all clients together, may take from a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from t2v_edge.errors import UsageError

PIXELS_PER_CORE = 1 << 23
"""Pixels a second of one client, for each core of the server: 512x512 at 64 frames a second on two cores.

Resizing a pixel and encoding it as JPEG takes about 30 ns of processor time: a quarter of the cores for one client.
"""


def _cores() -> int:
    """Cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not every system has it
    return len(usable(0)) if usable else os.cpu_count() or 1


@dataclass(frozen=True)
class Limits:
    """The limits of a server. All are positive; raises `UsageError`.

    clients: sessions at once.
    waiting: connections that have not sent their hello yet. More ends the oldest of the address that has most.
    connections_per_s: new connections of one address in the long run, and twice as many at once. More are cut off.
    messages_per_s, burst: messages of one client, in the long run and at once. More ends its session. They limit its
    frames and bytes below the messages as well.
    pixels_per_s: pixels of one client, see `PixelBudget`. All clients of one address take at most twice as many, and
    all together three times as many.
    hello_s: seconds for the handshake, and again for the hello.
    stall_s: seconds that a message may wait until the client reads it.
    ping_s: seconds between pings, and seconds for an answer.
    stop_s: seconds for clients to leave when the server stops.
    penalty_s: seconds that the place of a session ended for too many messages stays taken.
    """

    clients: int = 8
    waiting: int = 32
    connections_per_s: float = 60.0
    messages_per_s: float = 30.0
    burst: int = 60
    pixels_per_s: float = field(default_factory=lambda: float(PIXELS_PER_CORE * _cores()))
    hello_s: float = 10.0
    stall_s: float = 20.0
    ping_s: float = 15.0
    stop_s: float = 5.0
    penalty_s: float = 1.0

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise UsageError(f"{item.name} is {getattr(self, item.name)}, expected more than 0")


class RateLimit:
    """A token bucket: `burst` at once, `per_s` a second in the long run. It reads no clock."""

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._then_s = now_s

    def take(self, now_s: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens. False if there are not as many."""
        self._tokens = min(self._burst, self._tokens + self._per_s * max(0.0, now_s - self._then_s))
        self._then_s = max(self._then_s, now_s)
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True
