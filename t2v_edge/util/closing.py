"""A base of things that must be closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

_Opened = TypeVar("_Opened", bound="Closing")


class Closing(ABC):
    """A context manager that closes itself at the end of its block."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held. May be called often."""

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
