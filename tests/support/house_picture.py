"""The picture of the house: rooms by level, as SVG."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from html import escape

WIDTH, ROW, BOX, MARGIN = 960, 62, 28, 20
LETTER = 7.6
"""Width of a letter of the labels."""

COLOURS = {
    "ground": "#e8e4da",
    "model": "#f6d6ad",
    "data": "#cfe3c4",
    "convert": "#f0e0b8",
    "checkpoints": "#f0e0b8",
    "inference": "#f6c6b0",
    "library": "#c9dcef",
    "serve": "#d9cdec",
    "train": "#f3c3cd",
    "evaluate": "#c6e4e2",
}
OTHER = "#e6e6e6"


def draw(
    levels: Sequence[Sequence[str]], arrows: set[tuple[str, str]], ground: Sequence[str]
) -> str:
    """SVG of the rooms, the highest level first and the files of the ground in the last. An arrow
    runs from a room to one that it imports; those to the ground, and those that a way through other
    rooms implies, are left out.
    """
    centres = {
        room: (WIDTH * (place + 0.5) / len(rooms), MARGIN + row * ROW + BOX / 2)
        for row, rooms in enumerate(levels)
        for place, room in enumerate(rooms)
    }
    shown = _reduced({(a, b) for a, b in arrows if b not in levels[-1]})
    height = 2 * MARGIN + ROW * (len(levels) - 1) + BOX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12.5">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>',
    ]
    parts += [_arrow(centres[a], centres[b]) for a, b in sorted(shown)]
    parts += [
        _box(room, room if room not in levels[-1] else f"{room}: {' '.join(ground)}", *centre)
        for room, centre in centres.items()
    ]
    return "\n".join([*parts, "</svg>", ""])


def _reduced(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way implies."""
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)

    @functools.cache
    def reached(room: str) -> frozenset[str]:
        return frozenset().union(*({b} | reached(b) for b in below.get(room, ())))

    return {(a, b) for a, b in arrows if not any(b in reached(c) for c in below[a] - {b})}


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0], start[1] + BOX / 2
    x2, y2 = end[0], end[1] - BOX / 2
    bend = (y2 - y1) / 2
    curve = (
        f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    )
    return f'<path d="{curve}" fill="none" stroke="#999" marker-end="url(#tip)"/>'


def _box(room: str, label: str, x: float, y: float) -> str:
    width = len(label) * LETTER + 18
    colour = COLOURS.get(room.split(".")[0], OTHER)
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - BOX / 2:.0f}" width="{width:.0f}" height="{BOX}" '
        f'rx="5" fill="{colour}" stroke="#555"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(label)}</text>'
    )
