"""A trace as a PNG: activity over time, heat maps of PEs and links at moments, what the threads of some PEs did."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from openwafer.base.errors import RunError
from openwafer.view.style import BLUE, FAINT, HEAT, IDLE, ORANGE, SKY, STYLE
from openwafer.view.wafer_trace import KINDS, MAIN, Trace

MOMENTS = 6
MAX_DRAWN_LINKS = 48
"""Rectangles up to this many PEs a side have their links drawn one by one."""
_LANE = {"task": SKY, "vector": BLUE, "stall": ORANGE}
_HALF = 0.46


def chosen_pes(trace: Trace, text: str) -> list[tuple[int, int]] | None:
    """PEs from "0,0 3,1"; None where nothing, or all, is said.

    Raises:
        RunError: the trace has no events of one of them.
    """
    if text.strip() in ("", "all"):
        return None
    known = " ".join(f"{x},{y}" for x, y in trace.watched) or "none"
    by_name = {f"{x},{y}": (x, y) for x, y in trace.watched}
    for item in text.split():
        if item not in by_name:
            raise RunError(f"--pes: the trace has no events of PE {item}; it has those of {known}.")
    return [by_name[item] for item in text.split()]


def draw_trace(trace: Trace, out: Path, title: str = "trace", pes: list[tuple[int, int]] | None = None) -> None:
    """Write a PNG of the trace; `pes` chooses whose threads are shown, at most six."""
    shown = [pe for pe in (pes or trace.watched) if pe in trace.watched][:6]
    lanes = {pe: _threads(trace, pe) for pe in shown}
    lanes = {pe: threads for pe, threads in lanes.items() if threads}
    lane_inches = 0.2 * sum(map(len, lanes.values())) + 0.3 * len(lanes)
    heights = [1.5, 3.7, lane_inches + 0.7] if lanes else [1.5, 3.7]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, sum(heights) + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        parts = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
        _draw_totals(parts[0].subplots(), trace, title)
        _draw_moments(parts[1], trace.joined(MOMENTS))
        if lanes:
            _draw_timeline(parts[2].subplots(), trace, lanes)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=100)


def _draw_totals(axis: Axes, trace: Trace, title: str) -> None:
    short = trace.joined(200)
    middles = (short.cycles[1:] + short.cycles[:-1]) / 2
    links = max(1, _num_links(trace.size))
    busy = 100 * short.activity().mean((1, 2))
    traffic = 100 * short.traffic().sum((1, 2, 3)) / links
    axis.fill_between(middles, busy, color=BLUE, alpha=0.25, linewidth=0)
    axis.plot(middles, busy, color=BLUE, linewidth=1.3, label="PEs that issue")
    axis.plot(middles, traffic, color=ORANGE, linewidth=1.3, label="links in use")
    axis.set_xlim(trace.cycles[0], trace.cycles[-1])
    axis.set_ylim(0, 105)
    axis.yaxis.set_major_formatter(lambda percent, _position: f"{percent:g}%")
    axis.set_xlabel("cycle")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    width, height = trace.size
    axis.set_title(f"{title}  \N{MIDDLE DOT}  {width} x {height} PEs, {trace.arch}", loc="left", fontsize=11)


def _num_links(size: tuple[int, int]) -> int:
    width, height = size
    return 2 * ((width - 1) * height + width * (height - 1))


def _draw_moments(figure: SubFigure, trace: Trace) -> None:
    count = len(trace.busy)
    axes = np.asarray(figure.subplots(2, count, squeeze=False))
    activity, traffic = trace.activity(), trace.traffic()
    most = max(0.05, float(traffic.max()))
    norms = Normalize(0, 1), Normalize(0, most)
    for number in range(count):
        for row in axes[:, number]:
            _empty(row, trace.size)
        axes[0, number].imshow(activity[number], cmap=HEAT, norm=norms[0], interpolation="nearest")
        axes[0, number].set_title(f"{trace.cycles[number]:,} to {trace.cycles[number + 1]:,}", fontsize=8.5)
        _draw_links(axes[1, number], traffic[number], norms[1])
    axes[0, 0].set_ylabel("PEs")
    axes[1, 0].set_ylabel("links")
    for row, (norm, label) in enumerate(zip(norms, ("cycles that issue", "wavelets a cycle"), strict=True)):
        mappable = ScalarMappable(norm, HEAT)
        figure.colorbar(mappable, ax=list(axes[row]), label=label, pad=0.01, aspect=14)


def _empty(axis: Axes, size: tuple[int, int]) -> None:
    axis.set_xlim(-0.6, size[0] - 0.4)
    axis.set_ylim(size[1] - 0.4, -0.6)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_links(axis: Axes, traffic: np.ndarray, norm: Normalize) -> None:
    """[height, width, 4]; a link is a stroke beside that of the other direction. Large rectangles: the sum a PE."""
    height, width, _ = traffic.shape
    if max(width, height) > MAX_DRAWN_LINKS:
        axis.imshow(traffic.max(2), cmap=HEAT, norm=norm, interpolation="nearest")
        return
    squares = [[(x - 0.2, y - 0.2), (x + 0.2, y - 0.2), (x + 0.2, y + 0.2), (x - 0.2, y + 0.2)]
               for y in range(height) for x in range(width)]  # fmt: skip
    axis.add_collection(PolyCollection(squares, facecolors=FAINT, edgecolors="none"))
    segments, values = [], []
    for port, (dx, dy) in enumerate(((0, -1), (0, 1), (1, 0), (-1, 0))):
        for y in range(max(0, -dy), height - max(0, dy)):
            for x in range(max(0, -dx), width - max(0, dx)):
                sx, sy = -0.11 * dy, 0.11 * dx
                segments.append([(x + 0.22 * dx + sx, y + 0.22 * dy + sy), (x + 0.78 * dx + sx, y + 0.78 * dy + sy)])
                values.append(traffic[y, x, port])
    thick = max(0.8, min(4.0, 20 / max(width, height)))
    cmap = matplotlib.colormaps[HEAT].with_extremes(bad=IDLE)  # a link that nothing used
    lines = LineCollection(segments, cmap=cmap, norm=norm, linewidths=thick)
    lines.set_array(np.ma.masked_equal(values, 0))
    axis.add_collection(lines)


def _threads(trace: Trace, pe: tuple[int, int]) -> list[int]:
    """The main thread first, then the microthreads that did something."""
    own = (trace.events[:, 0] == pe[0]) & (trace.events[:, 1] == pe[1])
    return sorted({int(t) for t in trace.events[own, 2]}, key=lambda t: (t != MAIN, t))


def _draw_timeline(axis: Axes, trace: Trace, lanes: dict[tuple[int, int], list[int]]) -> None:
    at, ticks, labels = 0.0, [], []
    bars: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in KINDS}
    for pe, threads in lanes.items():
        for thread in threads:
            _add_bars(trace, pe, thread, at, bars)
            ticks.append(at)
            name = "main" if thread == MAIN else f"microthread {thread}"
            labels.append(f"PE {pe[0]},{pe[1]}  {name}" if thread == threads[0] else name)
            at += 1
        at += 0.7
    for kind in KINDS:
        axis.add_collection(PolyCollection(bars[kind], facecolors=_LANE[kind], edgecolors="none"))
    axis.set_xlim(trace.cycles[0], trace.cycles[-1])
    axis.set_ylim(at - 0.7, -0.8)
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("cycle")
    words = {"task": "task runs", "vector": "vector operation", "stall": "stalled"}
    handles = [Patch(color=_LANE[kind], label=words[kind]) for kind in KINDS]
    axis.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8.5)


def _add_bars(trace: Trace, pe: tuple[int, int], thread: int, at: float, bars: dict) -> None:
    own = (trace.events[:, 0] == pe[0]) & (trace.events[:, 1] == pe[1]) & (trace.events[:, 2] == thread)
    for _, _, _, kind, start, end in trace.events[own].tolist():
        half = _HALF if kind == 0 or thread != MAIN else 0.28
        bars[KINDS[kind]].append([(start, at - half), (end, at - half), (end, at + half), (start, at + half)])
