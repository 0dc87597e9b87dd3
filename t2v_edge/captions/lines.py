"""Caption events from lines: as they are typed or piped in, and from a recording of them."""

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
    """What lines are read from, as `sys.stdin.buffer`."""

    def readline(self, limit: int, /) -> bytes: ...


class CaptionLines(Iterator[CaptionEvent]):
    """Lines of UTF-8 as events, each when it has come. For `sys.stdin.buffer` or any binary file.

    A line that begins with ``{`` is a JSON object with the fields of a `CaptionEvent`, of which ``text`` must be there;
    ``final`` is true, ``revision`` 0 and ``segment`` the next one where they are not said, and a partial must say its
    segment. Any other line is a caption, final. Empty lines are passed over. `received_s` is always `clock`'s.

    A line that is too long, no UTF-8 or no event raises `CueError`, which names it; the iteration may go on behind it.
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
        """Pass over the rest of a line that is too long, in bounded memory."""
        while True:
            rest = self._file.readline(MAX_LINE_BYTES)
            if not rest or rest.endswith(b"\n"):
                return


def parse_event(text: str, known: dict[str, Any], received_s: Optional[float] = None) -> CaptionEvent:
    """An event from a JSON object; `known`: fields for those that are not said. Raises `CaptionError`.

    received_s: takes the place of what the object says; None: the object must say it.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"this is not valid JSON ({str(error)[:80]}); send one object on one line") from error
    if not isinstance(said, dict):
        raise CaptionError("this is not a JSON object; send one with a text")
    unknown = sorted(set(said) - set(_FIELDS))
    if unknown:
        raise CaptionError(f"{unknown[0][:40]!r} is no field of an event; there are: {', '.join(_FIELDS)}")
    if said.get("final") is False and "segment" not in said:
        raise CaptionError("a partial caption must say its segment, so that its revisions can be told from the next")
    if received_s is not None:
        said["received_s"] = received_s
    values = {**known, **said}
    missing = [name for name in _FIELDS if name not in values and name not in ("start_s", "end_s")]
    if missing:
        raise CaptionError(f"the event does not say its {missing[0]}; add it")
    return CaptionEvent(**values)


def format_event(event: CaptionEvent) -> str:
    """The event as a line of JSON, for a transcript."""
    said = {name: getattr(event, name) for name in _FIELDS}
    return json.dumps({name: value for name, value in said.items() if value is not None}, ensure_ascii=True)


def read_transcript(path: Union[str, os.PathLike[str]]) -> tuple[CaptionEvent, ...]:
    """The events of a recording, JSON lines as `format_event` writes them, in the order in which they came.

    `received_s` counts from the recording's start, and may not fall. At most 16 MiB. Raises `CueError`, which names
    file and line.
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
