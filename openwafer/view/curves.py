"""The curves of a run as one PNG: loss, throughput, and where the time goes.

Reads RUN/events.jsonl and nothing else. Draws on a Figure of its own: no pyplot, so no global state and no display.
Colours: the Okabe-Ito palette, told apart by colour-blind eyes (Okabe and Ito 2008, jfly.uni-koeln.de/color).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openwafer.base.errors import RunError
from openwafer.base.events import Mark, StepRecord, read_events, read_steps
from openwafer.base.units import format_bytes, format_count, format_seconds

_BLUE, _ORANGE, _INK, _GRID = "#0072B2", "#D55E00", "#333333", "#E4E4E4"
_CAUSES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#999999")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def run_view(run_dir: Path, out: Path | None = None) -> Path:
    """Draw the run in ``run_dir`` into ``out`` (RUN/curves.png unless given) and return where it is.

    Raises:
        RunError: the run wrote no events, or no step yet.
    """
    run_dir = Path(run_dir)
    events = run_dir / "events.jsonl"
    steps = read_steps(events)
    if not steps:
        raise RunError(f"{events} holds no step yet; wait for the first one, then draw again.")
    marks = [event for event in read_events(events) if isinstance(event, Mark)]
    out = run_dir / "curves.png" if out is None else Path(out)
    resumed = [int(mark.fields["step"]) for mark in marks if mark.event == "resume" and "step" in mark.fields]
    # Of a step that was run twice the later validation counts, as for its loss.
    validated = {int(mark.fields["step"]): float(mark.fields["loss"]) for mark in marks if mark.event == "validation"}
    draw_curves(steps, out, run_dir.resolve().name, resumed, validated)
    return out


def draw_curves(
    steps: Sequence[StepRecord],
    out: Path,
    title: str = "run",
    resumed_after: Sequence[int] = (),
    validated: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Write a PNG of ``steps``.

    Args:
        resumed_after: the last durable step before each resume.
        validated: validation loss by step.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 9.4), dpi=120, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes: Sequence[Axes] = figure.subplots(3, 1, sharex=True, height_ratios=(4, 3, 3))
        _draw_loss(axes[0], steps, validated)
        _draw_throughput(axes[1], steps)
        _draw_stalls(axes[2], steps)
        for number, axis in enumerate(axes):
            _mark_resumes(axis, resumed_after, labelled=number == 0)
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        first, last = steps[0].step, steps[-1].step
        axes[-1].set_xlim(first - 0.5, max(last, first + 1) + 0.5)
        figure.suptitle(title, x=0.085, y=0.978, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.085, 0.938, _summary(steps), ha="left", fontsize=9, color="#666666")
        figure.subplots_adjust(left=0.085, right=0.975, top=0.895, bottom=0.06, hspace=0.16)
        figure.align_ylabels(axes)
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.print_png(str(out))


def _draw_loss(axis: Axes, steps: Sequence[StepRecord], validated: Mapping[int, float]) -> None:
    good = [record for record in steps if not record.skipped]
    numbers, losses = [record.step for record in good], [record.loss for record in good]
    smooth = _smoothed(losses)
    axis.plot(numbers, losses, color=_BLUE, alpha=0.3 if len(good) > 20 else 1.0, marker=_marker(good), markersize=3)
    if len(good) > 20:
        axis.plot(numbers, smooth, color=_BLUE, linewidth=2, label="loss, smoothed")
    if good:
        axis.annotate(
            f"{losses[-1]:.3f}",
            (numbers[-1], smooth[-1]),
            xytext=(-4, 9),
            textcoords="offset points",
            ha="right",
            color=_BLUE,
            fontweight="bold",
        )
    skipped = [record.step for record in steps if record.skipped]
    if skipped:
        axis.plot(
            skipped,
            [0.03] * len(skipped),
            "x",
            transform=axis.get_xaxis_transform(),
            color=_ORANGE,
            markeredgewidth=2,
            label="skipped: NaN or Inf in the gradient",
        )
    if validated:
        numbers = sorted(validated)
        axis.plot(
            numbers, [validated[step] for step in numbers], "D", color=_ORANGE, markersize=5, label="validation loss"
        )
    if len(good) > 20 or skipped or validated:
        axis.legend(loc="upper right")
    axis.set_ylabel("loss (nats a token)")


def _draw_throughput(axis: Axes, steps: Sequence[StepRecord]) -> None:
    rates = [record.tokens_per_s for record in steps]
    middle = sorted(rates)[len(rates) // 2]
    axis.plot([record.step for record in steps], rates, color=_BLUE, marker=_marker(steps), markersize=3, linewidth=1.3)
    axis.axhline(middle, color=_ORANGE, linewidth=1.2, linestyle=(0, (5, 3)), label=f"median {middle:,.0f} tokens/s")
    axis.set_ylim(0, max(*rates, middle, 1e-9) * 1.25)
    axis.yaxis.set_major_formatter(
        FuncFormatter(lambda rate, _position: f"{rate:,.0f}" if middle >= 10 else f"{rate:g}")
    )
    axis.set_ylabel("useful tokens/s")
    axis.legend(loc="lower right")


def _draw_stalls(axis: Axes, steps: Sequence[StepRecord]) -> None:
    totals: dict[str, float] = {}
    for record in steps:
        for cause, wait_s in record.stall_s.items():
            totals[cause] = totals.get(cause, 0.0) + wait_s
    # The longest waits have a colour each; the tail shares the last one.
    ranked = sorted((cause for cause in totals if totals[cause] > 0), key=lambda cause: -totals[cause])
    own = ranked if len(ranked) <= len(_CAUSES) else ranked[: len(_CAUSES) - 1]
    groups = [(cause, {cause}) for cause in own]
    if len(own) < len(ranked):
        groups.append(("other", set(ranked) - set(own)))
    spent_s = sum(record.seconds for record in steps)
    bars = _binned(steps)
    base = [0.0] * len(bars)
    middles = [(bar[0].step + bar[-1].step) / 2 for bar in bars]
    widths = [bar[-1].step - bar[0].step + 1 for bar in bars]
    for colour, (name, causes) in zip(_CAUSES, groups, strict=False):
        heights = [_share(bar, causes) for bar in bars]
        share = sum(totals[cause] for cause in causes) / spent_s if spent_s else 0.0
        axis.bar(middles, heights, widths, bottom=base, color=colour, linewidth=0, label=f"{name} ({share:.1%})")
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axis.set_ylim(0, min(105.0, max(10.0, max(base, default=0.0) * 1.45)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda percent, _position: f"{percent:g}%"))
    axis.set_ylabel("stall, share of step")
    if groups:
        axis.legend(loc="upper right", ncols=min(3, len(groups)), title="waiting for", title_fontsize=9)
    else:
        axis.text(0.5, 0.5, "no stall", transform=axis.transAxes, ha="center", color="#888888")


def _mark_resumes(axis: Axes, resumed_after: Sequence[int], labelled: bool) -> None:
    for number, step in enumerate(resumed_after):
        axis.axvline(step + 0.5, color=_INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7, zorder=1)
        # Words beside each other would run into one another; beyond a few the lines say enough.
        if labelled and (number == 0 or len(resumed_after) <= 4):
            axis.annotate(
                f"resumed after {step}",
                (step + 0.5, 1.0),
                xycoords=axis.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=_INK,
            )


def _summary(steps: Sequence[StepRecord]) -> str:
    good = [record.loss for record in steps if not record.skipped]
    parts = [
        f"{len(steps):,} step" + ("s" if len(steps) > 1 else ""),
        f"{format_count(sum(record.tokens for record in steps))} tokens",
        f"{format_seconds(sum(record.seconds for record in steps))} of training",
        f"loss {good[0]:.3f} \N{RIGHTWARDS ARROW} {good[-1]:.3f}" if good else "every step skipped",
        f"peak RSS {format_bytes(max(record.peak_rss_bytes for record in steps))}",
        f"disk: {format_bytes(sum(record.bytes_read for record in steps))} read, "
        f"{format_bytes(sum(record.bytes_written for record in steps))} written",
    ]
    return "  \N{MIDDLE DOT}  ".join(parts)


def _binned(steps: Sequence[StepRecord], most: int = 120) -> list[Sequence[StepRecord]]:
    """Neighbouring steps together, so that at most ``most`` bars are drawn."""
    width = -(-len(steps) // most)
    return [steps[start : start + width] for start in range(0, len(steps), width)]


def _share(records: Sequence[StepRecord], causes: set[str]) -> float:
    """Percent of the wall time of ``records`` spent waiting for ``causes``."""
    spent_s = sum(record.seconds for record in records)
    waited_s = sum(record.stall_s.get(cause, 0.0) for record in records for cause in causes)
    return 100.0 * waited_s / spent_s if spent_s > 0 else 0.0


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window around each value: centred, so that it does not lag; narrower towards both ends."""
    reach = max(1, len(values) // 40)
    smooth = []
    for index in range(len(values)):
        side = min(reach, index, len(values) - 1 - index)
        window = values[index - side : index + side + 1]
        smooth.append(sum(window) / len(window))
    return smooth


def _marker(records: Sequence[StepRecord]) -> str:
    return "o" if len(records) <= 60 else ""
