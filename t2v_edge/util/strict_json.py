"""JSON with strict rules, for bundles and messages: finite numbers, no key twice, bounded depth."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from t2v_edge.errors import BundleError

MAX_DEPTH = 32
MAX_DIGITS = 64
"""The most digits of an integer. The time to read one grows with their square."""


def loads(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON. Raises `BundleError` naming `where` for malformed, non-finite or too deep values."""
    try:
        return parse(data.decode("utf-8"))
    except ValueError as error:
        raise BundleError(f"{where} is not valid JSON ({error}); export or copy the bundle again") from error


def parse(text: str, depth: int = MAX_DEPTH) -> Any:
    """Parse JSON of at most `depth` levels. Raises `ValueError` for malformed, non-finite or too deep values."""
    try:
        _check_depth(text, depth)
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=_unique
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def dumps(value: Any) -> bytes:
    """Readable UTF-8 JSON, the same bytes for the same value. Raises `BundleError` for NaN or infinity."""
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode("utf-8")
    except ValueError as error:
        raise BundleError(f"a value cannot be stored as JSON ({error}); find the NaN or infinity it names") from error


def _check_depth(text: str, most: int) -> None:
    depth, in_string, escaped = 0, False, False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > most:
                raise ValueError(f"nested deeper than {most} levels")
        elif char in "]}":
            depth -= 1


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"number {text[:20]}... has more than {MAX_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is out of range")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"key {counts.most_common(1)[0][0]!r} stands twice")
    return result
