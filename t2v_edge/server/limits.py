"""What one client, and all of them together, may take of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from t2v_edge.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Each is positive; raises `UsageError`.

    clients: sessions at once. waiting: connections that have not said hello yet. messages_per_s, burst: of one client;
    more ends its session, whose place stays taken for `penalty_s`, so that who comes straight back has to wait as well.
    hello_s: for the handshake, and then for the hello. stall_s: how long one message may wait
    for a client to read. ping_s: between pings, and how long an answer may take. stop_s: for clients to leave when the
    server stops.
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
    """A token bucket: `burst` messages at once, `per_s` a second in the long run. Reads no clock."""

    def __init__(self, per_s: float, burst: int, now_s: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._then_s = now_s

    def take(self, now_s: float) -> bool:
        """Whether one more message may come now."""
        self._tokens = min(self._burst, self._tokens + self._per_s * max(0.0, now_s - self._then_s))
        self._then_s = max(self._then_s, now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
