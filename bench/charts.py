"""Plots as SVG, in the few forms that the page needs: bars beside their names, and lines over a scale.

Text only, no scripts, no fonts of its own; a light ground, so that it reads in a dark window too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
COLOURS: Final = ("#8a8f98", "#b9a06a", "#2f6fde", "#d2573c", "#8fb8f6", "#d9dce2")
INK, FAINT, GROUND = "#1f2430", "#d9dce2", "#ffffff"
_FONT: Final = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"
_LEFT, _RIGHT, _TOP = 200, 110, 44
_BAR, _GAP = 20, 8


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name, its parts from left to right, and what stands behind it."""

    name: str
    parts: tuple[float, ...]
    text: str


def bars(title: str, unit: str, rows: Sequence[Bar], *, parts: Mapping[str, int] | None = None) -> str:
    """Bars from zero. `parts`: names and colours of what bars consist of; else each bar has its own colour."""
    largest = max((sum(row.parts) for row in rows), default=0.0) or 1.0
    scale = (WIDTH - _LEFT - _RIGHT) / largest
    top = _TOP + (22 if parts else 0)
    colours = list((parts or {}).values())
    lines = [_legend(list(parts), _TOP - 2, colours)] if parts else []
    for number, row in enumerate(rows):
        y, x = top + number * (_BAR + _GAP), float(_LEFT)
        lines.append(_text(_LEFT - 8, y + 14, row.name, anchor="end"))
        for place, part in enumerate(row.parts):
            colour = COLOURS[colours[place] if parts else number % len(COLOURS)]
            lines.append(f"<rect x='{x:.1f}' y='{y}' width='{part * scale:.1f}' height='{_BAR}' fill='{colour}'/>")
            x += part * scale
        lines.append(_text(x + 6, y + 14, row.text))
    return _svg(title, unit, top + len(rows) * (_BAR + _GAP) + 6, lines)


def lines(
    title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    log: bool = False,
    colours: Mapping[str, int] | None = None,
) -> str:
    """One line for each name. `log`: both scales are logarithmic, for what spans powers of ten."""
    points = [point for line in series.values() for point in line]
    if not points:
        return empty(title)
    height, left, right, top = 300, 64, 24, _TOP + 24
    xs = _Scale.of([x for x, _ in points], log=log)
    heights = [y for _, y in points]
    ys = _Scale.decades(heights) if log else _Scale.of(heights, log=False, from_zero=True)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + xs.share(x) * (WIDTH - left - right), top + (1 - ys.share(y)) * (height - top - 44)

    drawn = []
    for tick in ys.ticks():
        _, y = place(points[0][0], tick)
        drawn.append(f"<line x1='{left}' x2='{WIDTH - right}' y1='{y:.1f}' y2='{y:.1f}' stroke='{FAINT}'/>")
        drawn.append(_text(left - 8, y + 4, _short(tick), anchor="end"))
    across_ticks = sorted({x for x, _ in points}) if log else xs.ticks()
    drawn += [_text(place(x, points[0][1])[0], height - 26, _short(x), anchor="middle") for x in across_ticks]
    drawn.append(_text((left + WIDTH - right) / 2, height - 8, across, anchor="middle"))
    order = {name: (colours or {}).get(name, number) for number, name in enumerate(series)}
    drawn.append(_legend(list(series), _TOP - 2, [order[name] for name in series]))
    for name, line in series.items():
        colour = COLOURS[order[name] % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if log:
            drawn += [
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in (place(*p) for p in line)
            ]
    return _svg(title, unit, height, drawn)


def empty(title: str) -> str:
    """In place of a plot whose figures were not measured yet."""
    return _svg(title, "not measured yet", _TOP + 12, [])


@dataclass(frozen=True, slots=True)
class _Scale:
    first: float
    last: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], *, log: bool, from_zero: bool = False) -> _Scale:
        if log:
            return cls(min(value for value in values if value > 0), max(values), log=True)
        return cls(0.0 if from_zero else min(values), max(values) * (1.1 if from_zero else 1), log=False)

    @classmethod
    def decades(cls, values: Sequence[float]) -> _Scale:
        """Whole powers of ten around the values: what differs by a hundredth must not look like the whole height."""
        first = math.floor(math.log10(min(value for value in values if value > 0)))
        last = math.ceil(math.log10(max(values)))
        return cls(10.0**first, 10.0 ** max(last, first + 1), log=True)

    def share(self, value: float) -> float:
        if self.log:
            span = math.log(self.last / self.first) or 1.0
            return math.log(max(value, self.first) / self.first) / span
        return (value - self.first) / ((self.last - self.first) or 1.0)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.first)), math.ceil(math.log10(self.last)) + 1)
            return [10.0**power for power in powers if self.first <= 10.0**power <= self.last]
        step = 10 ** math.floor(math.log10(max(self.last - self.first, 1e-9)))
        step = next(
            step * factor for factor in (0.1, 0.2, 0.5, 1, 2) if (self.last - self.first) / (step * factor) <= 6
        )
        return [step * number for number in range(math.ceil(self.first / step), math.floor(self.last / step) + 1)]


def _legend(names: Sequence[str], y: float, colours: Sequence[int]) -> str:
    drawn, x = [], 16.0
    for number, name in enumerate(names):
        colour = COLOURS[colours[number] % len(COLOURS)]
        drawn.append(f"<rect x='{x:.0f}' y='{y:.0f}' width='11' height='11' fill='{colour}'/>")
        drawn.append(_text(x + 16, y + 10, name))
        x += 34 + 7.2 * len(name)
    return "".join(drawn)


def _short(value: float) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    style = f"{_FONT} font-size='{size}' font-weight='{weight}' fill='{INK}' text-anchor='{anchor}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"


def _svg(title: str, unit: str, height: float, drawn: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' role='img'>"
    ground = f"<title>{escape(title)}</title><rect width='{WIDTH}' height='{height:.0f}' fill='{GROUND}'/>"
    words = _text(16, 24, title, size=15, weight="bold") + _text(WIDTH - 16, 24, unit, anchor="end")
    return "\n".join([head, ground, words, *drawn, "</svg>"]) + "\n"
