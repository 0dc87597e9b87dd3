"""Plots as inline SVG that takes its colours from the page: text is `currentColor`, series are the classes s0, s1..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 44
TINY = 1e-12


@dataclass(frozen=True)
class Series:
    """A line of (x, y) points; `style` is the class of its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Interval:
    """A value with its interval; `style` as in `Series`."""

    name: str
    low: float
    value: float
    high: float
    style: str


class Axis:
    """Values to pixels, linear or logarithmic, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log = log
        if log:
            low, high = max(low, TINY), max(high, TINY)
        if high - low <= TINY * max(1.0, abs(high)):
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(v, TINY)) for v in (value, low, high))
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Four to eight round values within the axis."""
        if not self.log:
            return _round_ticks(self.low, self.high)
        decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        every = max(1, len(decades) // 6)
        marks = [10.0**power for power in decades[::every]]
        if len(marks) >= 2:
            return marks
        exponent = math.floor(math.log10(self.low))
        fine = [m * 10.0**e for e in range(exponent, exponent + 3) for m in (1, 2, 5)]
        return [v for v in fine if self.low <= v <= self.high] or [self.low, self.high]


def _round_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.6g}"


def line_plot(
    series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False, log_y: bool = False, title: str = ""
) -> str:
    """Lines over a common x; on a logarithmic y, zeros lie on the bottom."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if not log_y or y > 0] or [TINY, 1.0]
    low, high = (min(ys) / 1.3, max(ys) * 1.3) if log_y else _padded(min(ys), max(ys))
    x, y = _frame(min(xs), max(xs), low, high, log_x, log_y)
    lines = []
    for s in series:
        places = " ".join(f"{x(px)},{y(max(py, y.low))}" for px, py in s.points)
        lines.append(f'<polyline class="line {s.style}" points="{places}"><title>{escape(s.name)}</title></polyline>')
    return _picture(_axes(x, y, x_label, y_label) + "".join(lines), title)


def scatter_plot(
    points: Sequence[tuple[str, float, float, str]],
    x_label: str,
    y_label: str,
    title: str = "",
    most: float | None = None,
) -> str:
    """Named points (name, x, y, style) with their names. y goes no higher than `most` if given."""
    low, high = _padded(min(p[2] for p in points), max(p[2] for p in points))
    high = high if most is None else min(high, most)
    left, right = _padded(min(p[1] for p in points), max(p[1] for p in points), 0.18)
    x, y = _frame(left, right, low, high, False, False)
    marks: list[str] = []
    taken: list[tuple[float, float]] = []
    for name, px, py, style in sorted(points, key=lambda p: y(p[2])):
        cx, cy = x(px), y(py)
        ty = cy + 4
        while any(abs(ty - other) < 14 and abs(cx - near) < 90 for near, other in taken):
            ty += 14
        taken.append((cx, ty))
        side = (cx - 9, "end") if cx > WIDTH * 0.72 else (cx + 9, "start")
        marks.append(
            f'<circle class="dot {style}" cx="{cx}" cy="{cy}" r="5"/>'
            f'<text x="{side[0]}" y="{ty:.1f}" text-anchor="{side[1]}">{escape(name)}</text>'
        )
    return _picture(_axes(x, y, x_label, y_label) + "".join(marks), title)


def interval_plot(rows: Sequence[tuple[str, Sequence[Interval]]], x_label: str, title: str = "") -> str:
    """Groups of intervals below each other, and a line at zero."""
    values = [v for _, group in rows for i in group for v in (i.low, i.high)]
    low, high = _padded(min(0.0, *values), max(0.0, *values))
    left, line = 104, 13
    top, y = 8, 8
    parts = []
    tall = sum(line * len(group) + 12 for _, group in rows)
    axis = Axis(low, high, left, WIDTH - RIGHT)
    for tick in axis.ticks():
        parts.append(
            f'<line class="{"zero" if tick == 0 else "grid"}" x1="{axis(tick)}" x2="{axis(tick)}" y1="{top}" '
            f'y2="{top + tall}"/><text x="{axis(tick)}" y="{top + tall + 16}" text-anchor="middle">'
            f"{short(tick)}</text>"
        )
    for name, group in rows:
        middle = y + 6 + line * len(group) / 2
        parts.append(f'<text x="{left - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
        for place, item in enumerate(group):
            at = y + 6 + line * (place + 0.5)
            parts.append(
                f'<g class="{item.style}"><line class="bar" x1="{axis(item.low)}" x2="{axis(item.high)}" '
                f'y1="{at}" y2="{at}"/><circle class="dot" cx="{axis(item.value)}" cy="{at}" r="4"/>'
                f"<title>{escape(item.name)}</title></g>"
            )
        y += line * len(group) + 12
    bottom = top + tall + 34
    parts.append(
        f'<text class="label" x="{(left + WIDTH - RIGHT) / 2}" y="{bottom}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    return _picture("".join(parts), title, bottom + 8)


def _padded(low: float, high: float, share: float = 0.08) -> tuple[float, float]:
    pad = (high - low) * share or abs(high) * 0.02 or 1.0
    return low - pad, high + pad


def _frame(left: float, right: float, low: float, high: float, log_x: bool, log_y: bool) -> tuple[Axis, Axis]:
    return Axis(left, right, LEFT, WIDTH - RIGHT, log_x), Axis(low, high, HEIGHT - BOTTOM, TOP, log_y)


def _axes(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t)}" y2="{y(t)}"/>'
        f'<text x="{LEFT - 7}" y="{y(t) + 4}" text-anchor="end">{short(t)}</text>'
        for t in y.ticks()
    ]
    under = [f'<text x="{x(t)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(t)}</text>' for t in x.ticks()]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'{"".join(grid)}{"".join(under)}<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
        f'y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f'{escape(x_label)}</text><text class="label" transform="translate(13 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )


def _picture(inside: str, title: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}">{inside}</svg>'
