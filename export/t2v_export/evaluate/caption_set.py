"""Captions to compare with, and what each of them names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2v_calibration.captions import find_captions, load_captions
from t2v_edge.errors import UsageError

HELD_OUT = "heldout"


@dataclass(frozen=True)
class SlottedCaption:
    """A caption, and the value of each slot (attribute) that it names; no slots where the file has none."""

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)


def read_slotted(name_or_path: str | os.PathLike[str], count: int | None = None) -> tuple[SlottedCaption, ...]:
    """The first `count` captions of a shipped set or a file, as `load_captions` takes them.

    A line of a ``.jsonl`` file may have ``"slots": {"shirt": "red", ...}``. Raises `CaptionError`, and `UsageError`
    where there are fewer than `count` or the slots are malformed.
    """
    path = find_captions(os.fspath(name_or_path))
    texts = load_captions(path)
    slots = _slots(path) if path.suffix == ".jsonl" else [{}] * len(texts)
    captions = tuple(SlottedCaption(text, named) for text, named in zip(texts, slots))
    if count is not None and not 1 <= count <= len(captions):
        raise UsageError(f"{path} holds {len(captions)} captions, {count} were asked for; give -n 1 to {len(captions)}")
    return captions[:count]


def _slots(path: Path) -> list[dict[str, str]]:
    found = []
    for line in path.read_text("utf-8-sig").split("\n"):
        if line.strip():
            slots = json.loads(line).get("slots") or {}
            if not isinstance(slots, dict) or not all(isinstance(value, str) for value in slots.values()):
                raise UsageError(f'{path}: slots are {str(slots)[:60]}, expected an object such as {{"shirt": "red"}}')
            found.append(slots)
    return found
