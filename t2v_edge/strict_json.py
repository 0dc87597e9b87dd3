"""JSON as a bundle may hold it: finite numbers, no key twice, bounded size and depth."""

from __future__ import annotations

import json
import math
from typing import Any

from t2v_edge.errors import BundleError

MAX_DEPTH = 32


def loads(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON; raises `BundleError` naming `where` for anything malformed, non-finite or too deep."""
    try:
        text = data.decode("utf-8")
        _check_depth(text, where)
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}); export or copy the bundle again") from error


def dumps(value: Any) -> bytes:
    """Readable UTF-8 JSON of `value`, the same bytes for the same value; raises `BundleError` for NaN or infinity."""
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode("utf-8")
    except ValueError as error:
        raise BundleError(f"a value cannot be stored as JSON ({error}); find the NaN or infinity it names") from error


def _check_depth(text: str, where: str) -> None:
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
            if depth > MAX_DEPTH:
                raise BundleError(f"{where} is nested deeper than {MAX_DEPTH} levels; export the bundle again")
        elif char in "]}":
            depth -= 1


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is out of range")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in names if names.count(k) > 1)!r} stands twice")
    return result
