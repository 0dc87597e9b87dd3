"""Readers of caption files (WebVTT, SubRip and plain lines) as cues with times, and a player of cues.

WebVTT follows W3C's "WebVTT: The Web Video Text Tracks Format". SubRip (SRT) has no standard. It is read as numbered
cues with a comma or a dot in their times. A browser drops what it cannot read; these parsers name the wrong line.
"""

from __future__ import annotations

import heapq
import html
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Optional, Union

from t2v_edge.captions.merger import MAX_EVENT_CHARACTERS, CaptionEvent, shorten
from t2v_edge.errors import CueError

MAX_BYTES = 1 << 20
MAX_CUES = 10_000
LINE_SECONDS = 4.0
SUFFIXES = (".vtt", ".srt", ".txt")

_ARROW = "-->"
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,3}))?"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?", re.ASCII)
# Tags: <c.yellow>, </c>, <v Mary>, <00:01.000>, <>. Not "5 < 6". SubRip also has {\an8}.
_TAG = re.compile(r"</?[A-Za-z0-9.:][^<>]*>|</?>")
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")
_NO_CUES = re.compile(r"(NOTE|STYLE|REGION)(?:[ \t].*)?")

_Line = tuple[int, str]


@dataclass(frozen=True)
class Cue:
    """A caption of a file, its text as it is shown. Times in seconds, of whole milliseconds."""

    start_s: float
    end_s: float
    text: str


def read_cues(path: Union[str, os.PathLike[str]]) -> tuple[Cue, ...]:
    """The cues of a ``.vtt``, ``.srt`` or ``.txt`` file, in the file's order.

    A ``.txt`` has one caption on each line, for `LINE_SECONDS` each. Lines that begin with ``#`` are comments. A file
    may have `MAX_BYTES` and `MAX_CUES`. Raises `CueError` naming the file and the line.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CueError(f"{path} does not have the name of a caption file; give one ending with {', '.join(SUFFIXES)}")
    return parse_cues(read_text(path, MAX_BYTES), suffix, str(path))


def parse_cues(text: str, suffix: str, where: str = "the captions") -> tuple[Cue, ...]:
    """The cues of a text. Raises `CueError`. suffix: ``.vtt``, ``.srt`` or ``.txt``. where: its name in errors."""
    written = re.split(r"\r\n|\r|\n", text.lstrip("\ufeff"))
    lines = enumerate(written, 1)
    if suffix == ".txt":
        cues = _cues_of_lines(lines)
    elif suffix == ".vtt":
        if not re.fullmatch(r"WEBVTT(?:[ \t].*)?", written[0]):
            raise CueError(f"{where}, line 1: a WebVTT file begins with WEBVTT; name a SubRip file .srt")
        cues = _cues_of_blocks(_blocks(lines, header=True), _NO_CUES)
    else:
        cues = _cues_of_blocks(_blocks(lines, header=False), None)
    found = []
    try:
        for cue in cues:
            if cue.text:
                found.append(cue)
            if len(found) > MAX_CUES:
                raise CueError(f"more than {MAX_CUES} cues; split the file")
    except CueError as error:
        raise CueError(f"{where}, {error}") from None
    if not found:
        raise CueError(f"{where}, there are no captions in it; write at least one")
    return tuple(found)


def play(cues: Sequence[Cue]) -> Iterator[tuple[float, CaptionEvent]]:
    """(seconds, event) in the order of time. Each text comes at its cue's start, as a final segment.

    Of cues that overlap, the one that began last counts, or the last in the file if they begin together. If another
    cue lasts longer than that one, its text comes again. Between cues the last text stays.
    """
    order = sorted(range(len(cues)), key=lambda index: cues[index].start_s)
    times = sorted({cue.start_s for cue in cues} | {cue.end_s for cue in cues})
    active: list[tuple[float, int]] = []  # a heap with the cue that began last on top
    begun, segment, current = 0, 0, -1
    for at_s in times:
        while begun < len(order) and cues[order[begun]].start_s <= at_s:
            heapq.heappush(active, (-cues[order[begun]].start_s, -order[begun]))
            begun += 1
        while active and cues[-active[0][1]].end_s <= at_s:
            heapq.heappop(active)
        if active and -active[0][1] != current:
            current = -active[0][1]
            cue = cues[current]
            yield at_s, CaptionEvent("cues", segment, 0, cue.text, True, cue.start_s, cue.end_s, at_s)
            segment += 1


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a UTF-8 file of at most `max_bytes`. Raises `CueError`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CueError(f"{path} cannot be read: {reason}; give a readable file of captions") from error
    if len(data) > max_bytes:
        raise CueError(f"{path} is larger than {max_bytes} bytes, the limit; split it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.split(rb"\r\n|\r|\n", data[: error.start]))
        raise CueError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8") from error


def _blocks(lines: Iterable[_Line], header: bool) -> Iterator[list[_Line]]:
    """The blocks of lines between empty lines. header: the first block is the file's header, and is left out."""
    block: list[_Line] = []
    for number, line in chain(lines, [(0, "")]):
        # In SubRip files an empty line may have spaces.
        if line if header else line.strip():
            block.append((number, line))
            if len(block) > MAX_EVENT_CHARACTERS:
                raise CueError(
                    f"line {number}: {MAX_EVENT_CHARACTERS} lines without an empty one; leave one empty between cues"
                )
            continue
        if header and block and block[0][0] == 1:
            _refuse_arrows(block[1:])
        elif block:
            yield block
        block = []


def _cues_of_blocks(blocks: Iterator[list[_Line]], no_cues: Optional[re.Pattern[str]]) -> Iterator[Cue]:
    """The cue of each block: an optional name, the times, the text."""
    for block in blocks:
        number, line = block[0]
        named = len(block) > 1 and not _looks_timed(line) and _looks_timed(block[1][1])
        if no_cues is not None and not named and no_cues.fullmatch(line):
            continue
        if named:
            number, line = block[1]
        start_ms, end_ms = _times(number, line)
        rest = block[2 if named else 1 :]
        _refuse_arrows(rest)
        yield Cue(start_ms / 1000, end_ms / 1000, _shown(number, [line for _, line in rest]))


def _cues_of_lines(lines: Iterable[_Line]) -> Iterator[Cue]:
    count = 0
    for number, line in lines:
        text = _short(number, line) if line and not line.lstrip().startswith("#") else ""
        if text:
            yield Cue(LINE_SECONDS * count, LINE_SECONDS * (count + 1), text)
            count += 1


def _looks_timed(line: str) -> bool:
    """Whether the line is a line of times, or looks like an attempt at one."""
    return _ARROW in line or re.match(r"\s*\d+:\d\d", line) is not None


def _times(number: int, line: str) -> tuple[int, int]:
    """Start and end of a line of times, in milliseconds."""
    match = _TIMING.fullmatch(line)
    if match is None:
        raise CueError(
            f"line {number}: {line[:60]!r} is not a line of times; write 00:00:01.000 --> 00:00:04.000, with an "
            "empty line between cues and none within one"
        )
    start, end = (_milliseconds(number, match.groups()[at : at + 4]) for at in (0, 4))
    if end <= start:
        raise CueError(f"line {number}: the cue does not end after it starts; correct its times")
    return start, end


def _milliseconds(number: int, fields: tuple[Optional[str], ...]) -> int:
    hours, minutes, seconds = (int(field or 0) for field in fields[:3])
    if minutes > 59 or seconds > 59:
        raise CueError(f"line {number}: minutes and seconds go to 59; correct the times")
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + int((fields[3] or "0").ljust(3, "0"))


def _refuse_arrows(lines: list[_Line]) -> None:
    for number, line in lines:
        if _ARROW in line:
            raise CueError(f"line {number}: a cue begins without an empty line before it; add one")


def _shown(number: int, lines: list[str]) -> str:
    """A cue's text without tags, with its entities decoded."""
    text = "\n".join(lines)
    if len(text) > MAX_EVENT_CHARACTERS:
        return _short(number, text)
    return _short(number, html.unescape(_TAG.sub("", _OVERRIDE.sub("", text))))


def _short(number: int, text: str) -> str:
    if len(text) > MAX_EVENT_CHARACTERS:
        raise CueError(
            f"line {number}: the caption has {len(text)} characters, at most {MAX_EVENT_CHARACTERS} are read; split it"
        )
    return shorten(text)
