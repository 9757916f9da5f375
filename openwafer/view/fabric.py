"""The routes of a compiled wafer program as a PNG: a panel for each color.

Takes the plain description that `openwafer wafer info` has (version 1); knows nothing of the compiler or simulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from openwafer.view.style import CYCLE, FAINT, INK, STYLE

STEP = {"NORTH": (0.0, -0.5), "SOUTH": (0.0, 0.5), "EAST": (0.5, 0.0), "WEST": (-0.5, 0.0)}
MAX_PANELS = 24
_HEAD = 0.13

Segment = tuple[tuple[float, float], tuple[float, float]]


def draw_fabric(content: dict[str, Any], out: Path, title: str = "program", colors: list[int] | None = None) -> None:
    """Write a PNG of the routes.

    Args:
        content: version, size, colors: as `openwafer.wafer.describe` gives them
        colors: only these
    """
    chosen = [c for c in content["colors"] if colors is None or c["color"] in colors][:MAX_PANELS]
    width, height = content["size"]
    columns = min(max(1, len(chosen)), 4 if width <= 2 * height else 2)
    rows = max(1, math.ceil(len(chosen) / columns))
    cell = max(0.06, min(0.55, 3.2 / max(width, height)))
    panel = max(1.6, width * cell), max(1.2, height * cell)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * panel[0] + 0.8, rows * (panel[1] + 0.55) + 1.0), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}  \N{MIDDLE DOT}  {width} x {height} PEs, {content['arch']}", x=0.02, ha="left")
        for number in range(rows * columns):
            axis = figure.add_subplot(rows, columns, number + 1)
            if number < len(chosen):
                _draw_color(axis, chosen[number], (width, height), CYCLE[number % len(CYCLE)])
            else:
                axis.set_axis_off()
        figure.legend(handles=_legend(), loc="outside lower left", ncols=4, fontsize=8.5)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)


def _legend() -> list[Line2D]:
    def mark(face: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker="o", markersize=7, color=INK, markerfacecolor=face, label=label)

    return [
        mark("white", "sent by the core"),
        mark(INK, "delivered to the core"),
        Line2D([], [], color=INK, linewidth=1.6, label="passed on"),
        Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label="other switch positions"),
    ]


def _draw_color(axis: Axes, color: dict[str, Any], size: tuple[int, int], ink: str) -> None:
    width, height = size
    axis.set_title(f"color {color['color']}", loc="left", fontsize=10, color=ink, fontweight="bold")
    axis.set_xlim(-0.75, width - 0.25)
    axis.set_ylim(height - 0.25, -0.75)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xticks(_ticks(width))
    axis.set_yticks(_ticks(height))
    axis.tick_params(length=0, labelsize=7.5, colors="#888888")
    squares = [_square(x, y) for y in range(height) for x in range(width)]
    axis.add_collection(PolyCollection(squares, facecolors=FAINT, edgecolors="none"))
    lines: list[Segment] = []
    dashed: list[Segment] = []
    heads: list[list[tuple[float, float]]] = []
    sources: list[tuple[int, int]] = []
    sinks: list[tuple[int, int]] = []
    for x, y, number in color["routes"]:
        shape = color["shapes"][number]
        for position, route in enumerate(shape["positions"]):
            if route is None:
                continue
            at_start = position == shape["start"]
            (lines if at_start else dashed).extend(_lines(x, y, route))
            if at_start:
                heads.extend(_heads(x, y, route[1]))
                sources += [(x, y)] * ("RAMP" in route[0] or "HOST" in route[0])
                sinks += [(x, y)] * ("RAMP" in route[1] or "HOST" in route[1])
    thick = max(0.5, min(1.8, 24 / max(width, height)))
    axis.add_collection(LineCollection(dashed, colors=ink, linewidths=0.6 * thick, linestyles=[(0, (2, 2))], alpha=0.7))
    axis.add_collection(LineCollection(lines, colors=ink, linewidths=thick))
    axis.add_collection(PolyCollection(heads, facecolors=ink, edgecolors="none"))
    dot = max(2.0, min(60.0, 2600 / (max(width, height) ** 2)))
    for places, area, face in ((sources, 2.4 * dot, "white"), (sinks, dot, ink)):
        if places:
            axis.scatter(*zip(*places, strict=True), s=area, facecolors=face, edgecolors=ink, linewidths=1.1, zorder=3)


def _ticks(count: int) -> list[int]:
    step = max(1, math.ceil(count / 8))
    return list(range(0, count, step))


def _square(x: int, y: int) -> list[tuple[float, float]]:
    half = 0.42
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def _lines(x: int, y: int, route: list[list[str]]) -> Iterator[Segment]:
    for port in (*route[0], *route[1]):
        if port in STEP:
            dx, dy = STEP[port]
            yield (x, y), (x + dx, y + dy)


def _heads(x: int, y: int, tx: list[str]) -> Iterator[list[tuple[float, float]]]:
    for port in tx:
        if port in STEP:
            dx, dy = STEP[port]
            tip, side = (x + dx, y + dy), (-dy, dx)
            back = (x + dx * (1 - 2 * _HEAD), y + dy * (1 - 2 * _HEAD))
            reach = 1.6 * _HEAD
            yield [tip, (back[0] + reach * side[0], back[1] + reach * side[1]),
                   (back[0] - reach * side[0], back[1] - reach * side[1])]  # fmt: skip
