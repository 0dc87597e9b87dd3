"""A reader of the values in a message from outside. It checks types and ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Optional, TypeVar, cast

from t2v_edge.errors import ProtocolError
from t2v_edge.util.limits import MAX_TERM

_SHOWN = 40
_FRACTION = re.compile(r"([0-9]{1,7})/([0-9]{1,7})")
T = TypeVar("T")


class Fields:
    """The values of one message of type `kind`.

    Every getter raises `ProtocolError` for a wrong value. The `optional_` getters return None if the key is absent or
    null.
    """

    def __init__(self, kind: str, values: dict[str, Any]) -> None:
        self._kind = kind
        self._values = values

    def wrong(self, name: str, value: Any, expected: str) -> ProtocolError:
        shown = "absent" if value is None else repr(str(value)[:_SHOWN])
        return ProtocolError("bad_value", f"{name} of a {self._kind} message is {shown}", f"send {expected}")

    def _required(self, name: str, value: Optional[T], expected: str) -> T:
        if value is None:
            raise self.wrong(name, None, expected)
        return value

    def optional_whole(self, name: str, low: int, high: int) -> Optional[int]:
        value = self._values.get(name)
        if value is not None and not _is_whole(value, low, high):
            raise self.wrong(name, value, f"a whole number, {low} to {high}")
        return cast(Optional[int], value)

    def whole(self, name: str, low: int, high: int) -> int:
        return self._required(name, self.optional_whole(name, low, high), f"a whole number, {low} to {high}")

    def wholes(self, name: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """A list of 1 to `most` whole numbers."""
        value = self._values.get(name)
        if isinstance(value, list) and 1 <= len(value) <= most and all(_is_whole(item, low, high) for item in value):
            return tuple(value)
        raise self.wrong(name, value, f"a list of 1 to {most} whole numbers, {low} to {high}")

    def optional_number(self, name: str, low: float, high: float) -> Optional[float]:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(name, value, f"a number, {low:g} to {high:g}")
        return float(value)

    def number(self, name: str, low: float, high: float) -> float:
        return self._required(name, self.optional_number(name, low, high), f"a number, {low:g} to {high:g}")

    def optional_fraction(self, name: str, low: int, high: int) -> Optional[Fraction]:
        """An exact rate: a number, or a text such as "30000/1001"."""
        value = self._values.get(name)
        if value is None:
            return None
        result: Optional[Fraction] = None
        if isinstance(value, str):
            match = _FRACTION.fullmatch(value)
            if match is not None and int(match[2]):
                result = Fraction(int(match[1]), int(match[2]))
        elif not isinstance(value, bool) and isinstance(value, (int, float)) and low <= value <= high:
            result = Fraction(str(value))
        if result is None or not low <= result <= high or max(result.numerator, result.denominator) > MAX_TERM:
            raise self.wrong(name, value, f'a number from {low} to {high} of at most six digits, or "30000/1001"')
        return result

    def fraction(self, name: str, low: int, high: int) -> Fraction:
        return self._required(name, self.optional_fraction(name, low, high), f"a number from {low} to {high}")

    def optional_size(self, name: str, most: int) -> Optional[tuple[int, int]]:
        """(width, height)."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(_is_whole(side, 1, most) for side in value):
            raise self.wrong(name, value, f"[width, height], each 1 to {most}")
        return value[0], value[1]

    def optional_text(self, name: str, most: int, default: Optional[str] = None) -> Optional[str]:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > most or not _is_unicode(value):
            raise self.wrong(name, value, f"text of at most {most} characters")
        return value

    def text(self, name: str, most: int) -> str:
        return self._required(name, self.optional_text(name, most), f"text of at most {most} characters")

    def optional_choice(self, name: str, choices: Sequence[str]) -> Optional[str]:
        value = self._values.get(name)
        if value is not None and value not in choices:
            raise self.wrong(name, value, f"one of: {', '.join(choices)}")
        return cast(Optional[str], value)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        return self._required(name, self.optional_choice(name, choices), f"one of: {', '.join(choices)}")

    def flag(self, name: str, default: Optional[bool] = None) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogate. JSON's escapes allow one, but it cannot be sent as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
