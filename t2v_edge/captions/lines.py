"""Readers of caption events from lines: typed, piped in, or from a transcript."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, Optional, Protocol, Union

from t2v_edge.captions.cues import read_text
from t2v_edge.captions.merger import CaptionEvent
from t2v_edge.errors import CaptionError, CueError

MAX_LINE_BYTES = 32 << 10
MAX_TRANSCRIPT_BYTES = 16 << 20
_FIELDS = tuple(field.name for field in fields(CaptionEvent))


class Lines(Protocol):
    """A source of lines, such as `sys.stdin.buffer`."""

    def readline(self, limit: int, /) -> bytes: ...


class CaptionLines(Iterator[CaptionEvent]):
    """An iterator of the events in lines of UTF-8, each when it comes. For `sys.stdin.buffer` or any binary file.

    A line that begins with ``{`` is a JSON object with the fields of a `CaptionEvent`. ``text`` is required, and
    ``segment`` for a partial. The others default to: ``final`` true, ``revision`` 0, ``segment`` the next one. Any
    other line is a final caption. Empty lines are skipped. `received_s` is always `clock`'s.

    A line that is too long, not UTF-8 or not an event raises `CueError` naming it. Iteration may continue after it.
    """

    def __init__(self, file: Lines, stream: str = "lines", clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._stream = stream
        self._clock = clock
        self._number = 0
        self._next_segment = 0

    def __next__(self) -> CaptionEvent:
        while True:
            line = self._file.readline(MAX_LINE_BYTES)
            if not line:
                raise StopIteration
            self._number += 1
            if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
                self._skip()
                raise CueError(f"line {self._number} has {MAX_LINE_BYTES} bytes or more; send less at once")
            try:
                text = line.decode("utf-8").strip().lstrip("\ufeff")
            except UnicodeDecodeError as error:
                raise CueError(f"line {self._number} is not UTF-8 text; send UTF-8") from error
            if text:
                return self._event(text)

    def _event(self, text: str) -> CaptionEvent:
        known: dict[str, Any] = {"stream": self._stream, "segment": self._next_segment, "revision": 0, "final": True}
        try:
            if text.startswith("{"):
                event = parse_event(text, known, self._clock())
            else:
                event = CaptionEvent(text=text, received_s=self._clock(), **known)
        except CaptionError as error:
            raise CueError(f"line {self._number}: {error}") from error
        self._next_segment = max(self._next_segment, event.segment + 1)
        return event

    def _skip(self) -> None:
        """Skip the rest of a line that is too long, in bounded memory."""
        while True:
            rest = self._file.readline(MAX_LINE_BYTES)
            if not rest or rest.endswith(b"\n"):
                return


def parse_event(text: str, known: dict[str, Any], received_s: Optional[float] = None) -> CaptionEvent:
    """An event from a JSON object. Raises `CaptionError`.

    known: values of fields that the object lacks.
    received_s: replaces the object's. None: the object must have it.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"this is not valid JSON ({str(error)[:80]}); send one object on one line") from error
    if not isinstance(given, dict):
        raise CaptionError("this is not a JSON object; send one with a text")
    unknown = sorted(set(given) - set(_FIELDS))
    if unknown:
        raise CaptionError(f"{unknown[0][:40]!r} is not a field of an event; the fields are: {', '.join(_FIELDS)}")
    if given.get("final") is False and "segment" not in given:
        raise CaptionError("a partial caption must have a segment, so that its next revision is recognised; add it")
    if received_s is not None:
        given["received_s"] = received_s
    values = {**known, **given}
    missing = [name for name in _FIELDS if name not in values and name not in ("start_s", "end_s")]
    if missing:
        raise CaptionError(f"the event has no {missing[0]}; add it")
    return CaptionEvent(**values)


def format_event(event: CaptionEvent) -> str:
    """The event as a line of JSON, for a transcript."""
    values = {name: getattr(event, name) for name in _FIELDS}
    return json.dumps({name: value for name, value in values.items() if value is not None}, ensure_ascii=True)


def read_transcript(path: Union[str, os.PathLike[str]]) -> tuple[CaptionEvent, ...]:
    """The events of a transcript, JSON lines as `format_event` writes them, in order. At most 16 MiB.

    `received_s` counts from the transcript's start, and must not fall. Raises `CueError` naming the file and the line.
    """
    path = Path(path)
    events: list[CaptionEvent] = []
    for number, line in enumerate(read_text(path, MAX_TRANSCRIPT_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        try:
            event = parse_event(line, {"stream": "transcript"})
            if event.received_s < (events[-1].received_s if events else 0.0):
                raise CaptionError(f"received_s is {event.received_s}, before the event above or 0; sort the lines")
        except CaptionError as error:
            raise CueError(f"{path}, line {number}: {error}") from error
        events.append(event)
    if not events:
        raise CueError(f"{path} has no events; record at least one")
    return tuple(events)
