"""Limits of what one client, and all clients together, may take from a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from t2v_edge.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The limits of a server. All are positive; raises `UsageError`.

    clients: sessions at once.
    waiting: connections that have not sent their hello yet.
    messages_per_s, burst: messages of one client, in the long run and at once. More ends its session.
    hello_s: seconds for the handshake, and again for the hello.
    stall_s: seconds that a message may wait until the client reads it.
    ping_s: seconds between pings, and seconds for an answer.
    stop_s: seconds for clients to leave when the server stops.
    penalty_s: seconds that the place of a session ended for too many messages stays taken.
    """

    clients: int = 8
    waiting: int = 32
    messages_per_s: float = 30.0
    burst: int = 60
    hello_s: float = 10.0
    stall_s: float = 20.0
    ping_s: float = 15.0
    stop_s: float = 5.0
    penalty_s: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise UsageError(f"{field.name} is {getattr(self, field.name)}, expected more than 0")


class RateLimit:
    """A token bucket: `burst` messages at once, `per_s` a second in the long run. It reads no clock."""

    def __init__(self, per_s: float, burst: int, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._then_s = now_s

    def take(self, now_s: float) -> bool:
        """Take a message's token. False if there is none."""
        self._tokens = min(self._burst, self._tokens + self._per_s * max(0.0, now_s - self._then_s))
        self._then_s = max(self._then_s, now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
