"""Small pieces of the page: names of mixes, numbers in words, tables, tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from t2v_export.evaluate.mixes import AGAINST

NONE = "–"
Json = Mapping[str, Any]


class MixNames:
    """What mixes are called and coloured on the page."""

    def __init__(self, report: Json) -> None:
        self.mixes = tuple(report["lanes"])
        self._against = report["against"]
        self.default = report["default"]["lane"]

    def text(self, mix: str) -> str:
        if mix == AGAINST:
            return f"{self._against} (FP32)"
        return f"{mix} (default mix)" if mix == self.default != "default" else mix

    def style(self, mix: str) -> str:
        return f"s{self.mixes.index(mix) % 8}"

    def mark(self, mix: str) -> str:
        """The name with its colour, as HTML."""
        return f'<i class="{self.style(mix)}"></i>{escape(self.text(mix))}'

    def pair(self, pair: Json) -> str:
        """The candidate, and its baseline if there is more than one."""
        versus = f" against {escape(self.text(pair['baseline']))}" if self._against else ""
        return self.mark(pair["candidate"]) + versus

    def key(self) -> str:
        return f'<div class="key">{"".join(f"<span>{self.mark(mix)}</span>" for mix in self.mixes)}</div>'


def signed(value: float | None, digits: int = 2, unit: str = "") -> str:
    """``+1.25``, ``0`` only for exactly that, ``±0.00`` for what rounds to it, a dash for None; a true minus sign."""
    if value is None:
        return NONE
    if value == 0:
        return f"0{unit}"
    if abs(value) < 0.5 * 10**-digits:
        return f"±{0:.{digits}f}{unit}"
    return f"{value:+.{digits}f}{unit}".replace("-", "−")


def plain(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number of so many decimals, or a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}{unit}".replace("-", "−")


def tiny(value: float | None) -> str:
    """A small number of any size, two significant digits."""
    return NONE if value is None else "0" if value == 0 else f"{value:.2g}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f}" if size < 1e8 else f"{size / 1e6:.1f}"


def count(number: float) -> str:
    """``3.22 G``: a number with its thousands' letter."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {letter}"
    return f"{number:g}"


def interval(entry: Mapping[str, Any], digits: int = 2) -> str:
    """``−0.42 (−1.30 to +0.44)`` of a paired difference."""
    if entry["points"] == entry["low"] == entry["high"] == 0:
        return "0"
    return f"{signed(entry['points'], digits)} ({signed(entry['low'], digits)} to {signed(entry['high'], digits)})"


def percent(entry: Mapping[str, Any] | None) -> str:
    """``98.2`` of a proportion, or a dash where nothing was counted."""
    return f"{100 * entry['rate']:.1f}" if entry and entry["count"] else NONE


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; the table scrolls in its own box."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="box"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Large values over what they are; values are text."""
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in entries)
    return f'<div class="tiles">{"".join(cells)}</div>'


def figure(caption: str, picture: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def section(name: str, title: str, explained: str, inside: str) -> str:
    """A section of the page: a title, a sentence that explains it, and its content."""
    head = f'<h2>{escape(title)}</h2><p class="explain">{escape(explained)}</p>'
    return f'<section id="{name}">{head}{inside}</section>'
