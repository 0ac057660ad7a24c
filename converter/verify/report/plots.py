"""Errors on a logarithmic scale as SVG, without a library: reports are made where only JAX is installed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import escape

WIDTH, HEIGHT = 1080, 300
LEFT, RIGHT, TOP = 58, 12, 32
LOWEST, HIGHEST = 1e-20, 1e10  # what is beyond is drawn at the edge


@dataclass(frozen=True)
class Series:
    """name: for the legend. style: a CSS class. points: (error or None, text shown on hovering), one for each x."""

    name: str
    style: str
    points: Sequence[tuple[float | None, str]]


def log_plot(
    series: Sequence[Series], groups: Sequence[tuple[str, int]], bad: Sequence[int] = (), label: str = ""
) -> str:
    """An SVG element. groups: (name, number of x values) along the axis. bad: indices of x to mark."""
    values = sorted(min(max(error, LOWEST), HIGHEST) for s in series for error, _ in s.points if error)
    if not values:
        return "<p>nothing was measured</p>"
    high = math.ceil(math.log10(values[-1]))
    low = min(high - 1, math.floor(math.log10(values[len(values) // 50])))  # the smallest are drawn at the bottom
    count = max(len(s.points) for s in series)
    bottom = HEIGHT - (100 if len(groups) > 1 else 30)
    step = (WIDTH - LEFT - RIGHT) / count

    def x(i):
        return LEFT + (i + 0.5) * step

    def y(error):
        shown = math.log10(min(max(error, 10.0**low), 10.0**high))
        return bottom - (shown - low) / (high - low) * (bottom - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for i in bad:
        parts.append(
            f'<rect class="bad" x="{x(i) - step / 2:.1f}" y="{TOP}" width="{step:.1f}" height="{bottom - TOP}"/>'
        )
    for exponent in range(low, high + 1):
        height = y(10.0**exponent)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    start = 0
    for name, size in groups:
        edge, middle = LEFT + start * step, LEFT + (start + size / 2) * step
        parts.append(f'<line class="grid" x1="{edge:.1f}" x2="{edge:.1f}" y1="{TOP}" y2="{bottom}"/>')
        if len(groups) == 1:
            place = f'text-anchor="middle" transform="translate({middle:.1f} {bottom + 22})"'
        else:
            place = f'text-anchor="end" transform="translate({middle + 3:.1f} {bottom + 10}) rotate(-55)"'
        if size * step > 9:  # else there is no room
            parts.append(f'<text class="axis" {place}>{escape(name)}</text>')
        start += size
    for s in series:
        shown = [(x(i), y(error), text) for i, (error, text) in enumerate(s.points) if error is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in shown)
        parts.append(f'<polyline class="{s.style}" points="{path}"/>')
        if s.style != "limit":
            parts += [
                f'<circle class="{s.style}" cx="{a:.1f}" cy="{b:.1f}" r="2.4"><title>{escape(text)}</title></circle>'
                for a, b, text in shown
            ]
    legend = LEFT + 10
    for s in series:
        parts.append(f'<line class="{s.style}" x1="{legend}" x2="{legend + 22}" y1="12" y2="12"/>')
        parts.append(f'<text class="axis" x="{legend + 28}" y="16">{escape(s.name)}</text>')
        legend += 50 + 7 * len(s.name)
    return "".join([*parts, "</svg>"])
