"""Sentences of a Markdown page, for the tests of prose.

Code blocks are left out. A heading, a table cell, a list item and a paragraph are units; a sentence never crosses the
end of its unit. A link counts as its text, a picture as its description, and each word of inline code as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PARAGRAPH, ITEM, HEADING, CELL = "paragraph", "item", "heading", "cell"
PROSE = (PARAGRAPH, ITEM)
ABBREVIATIONS = ("e.g", "i.e", "etc", "vs", "cf", "al", "approx", "fig")

_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d+\.)\s+")
_RULE = re.compile(r"^\|?[\s:|-]+\|?$")
_CODE = "\u2060"  # stands before inline code, so that a sentence may begin with it
_END = re.compile(rf"([.!?]+)([\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-Z0-9\u0391-\u03a9\u4e00-\u9fff{_CODE}])")


@dataclass(frozen=True)
class Unit:
    """A piece of a page that holds whole sentences: its kind, its text without markup, and the line it starts on."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Sentence:
    """A sentence: the kind of its unit, its words, its text and the line its unit starts on."""

    kind: str
    words: tuple[str, ...]
    text: str
    line: int


def sentences(page: str) -> list[Sentence]:
    """All sentences of a page, in order."""
    found = []
    for unit in units(page):
        for text in split(unit.text):
            words = tuple(word for word in text.split() if re.search(r"\w", word))
            if words:
                found.append(Sentence(unit.kind, words, text, unit.line))
    return found


def units(page: str) -> Iterator[Unit]:
    """The units of a page: headings, paragraphs, list items and table cells; code blocks are left out."""
    held: list[str] = []
    kind, start, fenced, after_blank, in_code = PARAGRAPH, 0, False, True, False
    for number, line in enumerate([*page.splitlines(), ""], 1):
        is_fence = line.lstrip().startswith(("```", "~~~"))
        starts_code = line.startswith("    ") and (after_blank or in_code) and bool(line.strip())
        ends = not line.strip() or is_fence or line.startswith(("#", "|")) or bool(_ITEM.match(line)) or starts_code
        if held and (ends or fenced):
            yield Unit(kind, plain(" ".join(held)), start)
            held = []
        after_blank = not line.strip()
        in_code = starts_code or (in_code and after_blank)
        if is_fence:
            fenced = not fenced
        elif fenced or starts_code or after_blank:
            continue
        elif line.startswith("#"):
            yield Unit(HEADING, plain(line.lstrip("# ")), number)
        elif line.startswith("|"):
            if not _RULE.match(line):
                yield from (Unit(CELL, plain(cell), number) for cell in cells(line))
        else:
            if not held:
                kind, start = (ITEM if _ITEM.match(line) else PARAGRAPH), number
            held.append(_ITEM.sub("", line).strip() if kind == ITEM else line.strip())


def cells(row: str) -> list[str]:
    """The cells of a table's row; a bar inside inline code or behind a backslash separates nothing."""
    guarded = re.sub(r"`[^`]*`|\\\|", lambda match: match[0].replace("|", "\0"), row.strip().strip("|"))
    return [cell.replace("\\\0", "|").replace("\0", "|").strip() for cell in guarded.split("|")]


def plain(text: str) -> str:
    """Text without markup. Full stops inside inline code and addresses become dots that end no sentence."""
    text = re.sub(r"<!--.*?-->", " ", text)
    text = re.sub(r"`([^`]*)`", lambda match: _CODE + _quiet(match[1]), text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<(https?://[^>]*)>", lambda match: _quiet(match[1]), text)
    return re.sub(r"(\*\*|__|(?<!\w)[*_]|[*_](?!\w))", "", text).strip()


def _quiet(code: str) -> str:
    return re.sub(r"[.!?]", "\u2024", code)


def split(text: str) -> list[str]:
    """The sentences of a unit: they end at . ! or ? before a capital, a digit or inline code."""
    pieces, start = [], 0
    for match in _END.finditer(text):
        before = text[start : match.start()].split()
        word = before[-1].strip("(\"'") if before else ""
        if match[1] == "." and (word.lower() in ABBREVIATIONS or re.fullmatch(r"[A-Z]", word)):
            continue
        pieces.append(text[start : match.end()])
        start = match.end()
    pieces = [piece.replace(_CODE, "").strip() for piece in [*pieces, text[start:]]]
    return [piece for piece in pieces if piece]
