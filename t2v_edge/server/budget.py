"""Shares of the pixels a second that a server makes: by client, by address and in all."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from fractions import Fraction
from typing import Optional

from t2v_edge.errors import ProtocolError
from t2v_edge.live.quality import LOWEST_FPS
from t2v_edge.remote.protocol import WEBP, Settings

WEBP_COST = 4
"""A pixel in WebP takes about four times the processor time of one in JPEG or raw, resizing included."""
OF_ADDRESS, OF_ALL = 2, 3
"""What an address, and all together, may take, as multiples of what one client may."""


class PixelBudget:
    """The budget of one server.

    A client gets at most `pixels_per_s`. It also gets at most half of what is left to its address, and half of what is
    left in all. So there is always something left for the next one. What a client asks for is made to fit: first its
    frames get smaller, until 7 of them a second fit, then it gets fewer of them.

    offered: the settings of a client that asks for nothing else. One client may always have them.
    """

    def __init__(self, pixels_per_s: float, offered: Settings) -> None:
        self.per_client = max(pixels_per_s, _cost(offered), LOWEST_FPS * _cost(replace(offered, fps=Fraction(1))))
        self._taken: dict[Hashable, tuple[str, float]] = {}

    def grant(self, client: Hashable, address: str, asked: Settings) -> Settings:
        """The settings that `client` gets, in place of those that it had. Raises `ProtocolError`."""
        others = [share for one, share in self._taken.items() if one != client]
        here = sum(cost for where, cost in others if where == address)
        left = (OF_ADDRESS * self.per_client - here, OF_ALL * self.per_client - sum(cost for _, cost in others))
        granted = fit(asked, min(self.per_client, *(half / 2 for half in left)))
        if granted is None:
            raise ProtocolError("capacity", "the server makes as many pixels as it can", "try again later")
        self._taken[client] = (address, _cost(granted))
        return granted

    def release(self, client: Hashable) -> None:
        """Free what a client has."""
        self._taken.pop(client, None)


def fit(asked: Settings, pixels_per_s: float) -> Optional[Settings]:
    """`asked` with a size and a rate that take at most `pixels_per_s`. None if that is less than a pixel a frame.

    A frame takes at most a seventh of a second's pixels, at any rate. That bounds memory as well.
    """
    most = pixels_per_s / _weight(asked) * (1 + 1e-9)
    width, height = asked.size or (1, 1)
    shrink = math.sqrt(min(1.0, most / LOWEST_FPS / (width * height)))
    if shrink < 1:
        width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
    rate = asked.fps or Fraction(1)
    if width * height * rate > most:
        rate = Fraction(int(most / (width * height)))
    return replace(asked, size=(width, height), fps=rate) if rate else None


def _weight(settings: Settings) -> int:
    return WEBP_COST if settings.format == WEBP else 1


def _cost(settings: Settings) -> float:
    width, height = settings.size or (1, 1)
    return float(width * height * (settings.fps or 1) * _weight(settings))
