"""Models whose training state is many times the memory budget, and how the time of a step grows.

Run: python benchmarks/sizes.py            (all; 2.7B wants about 75 GB of disk)
     python benchmarks/sizes.py --sizes 1.3b --tokens 512

Every size is trained for real steps under its budget, in a process of its own; the store is removed afterwards. Then
one size is trained with more and more tokens. sizes.png shows time against parameters and against tokens with
straight lines fitted by least squares. A run of some sizes keeps the others' rows in sizes.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import trial
from trial import Trial

from openwafer.base.units import parse_bytes
from openwafer.models import CEREBRAS_GPT, num_parameters

BUDGETS = {"111m": "1280MiB", "256m": "2GiB", "590m": "2560MiB", "1.3b": "3GiB", "2.7b": "6GiB"}
DISK_BYTES_PER_PARAMETER = 28
"""Two slots of parameters and two moments, and gradients, all fp32: 2 * 12 + 4."""
DISK_MARGIN_BYTES = 2_000_000_000


def main() -> None:
    """Measure, print, plot and save."""
    args = parse()
    facts = report.provenance()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    outcomes = earlier(args.results / "sizes.json")
    failed = False
    with trial.store_folder(args.store) as folder:
        for size, tokens in work(args):
            refusal = disk_refusal(size, folder)
            one = Trial("streamed", size, tokens, args.steps, args.warmup, memory_bytes=budget_bytes(args, size))
            outcome = {"trial": vars(one), "error": refusal} if refusal else measure(one, folder, args.timeout)
            if refusal:
                print(f"  {size}: {refusal}", flush=True)
            failed |= "error" in outcome
            outcomes = [o for o in outcomes if key(o) != key(outcome)] + [{**outcome, "provenance": facts}]
            outcomes.sort(key=key)
            save(args.results, facts, outcomes)
    print("\n" + "\n\n".join(sections(outcomes)))
    if failed:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(BUDGETS), choices=CEREBRAS_GPT)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a step for the line over parameters")
    parser.add_argument("--memory", nargs="*", default=[], metavar="SIZE=BYTES", help='other budgets: "1.3b=4GiB"')
    parser.add_argument("--line-size", default="256m", choices=CEREBRAS_GPT, help="size for the line over tokens")
    parser.add_argument("--line-tokens", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps; see trial.py")
    parser.add_argument("--store", help="folder for the stores (default: runs/ of this repository)")
    parser.add_argument("--timeout", type=float, default=7200, metavar="SECONDS", help="of one process")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def work(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Sizes and tokens to run, each once."""
    pairs = [(size, args.tokens) for size in args.sizes] + [(args.line_size, count) for count in args.line_tokens]
    return list(dict.fromkeys(pairs))


def budget_bytes(args: argparse.Namespace, size: str) -> int:
    given = dict(text.split("=", 1) for text in args.memory)
    budget = given.get(size, BUDGETS.get(size))
    if budget is None:
        raise SystemExit(f"no memory budget is known for {size}: give --memory {size}=8GiB")
    return parse_bytes(budget, "--memory")


def disk_refusal(size: str, folder: Path) -> str | None:
    """Why the disk is too small for this size; None if it is not."""
    needed = num_parameters(CEREBRAS_GPT[size]) * DISK_BYTES_PER_PARAMETER + DISK_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"refused: {folder.parent} has {free / 1e9:.1f} GB free, the store of {size} may take {needed / 1e9:.1f} GB; "
        "free some, or give --store a folder on another disk"
    )


def measure(one: Trial, folder: Path, timeout_s: float) -> dict[str, Any]:
    with trial.one_store(folder) as store:
        return trial.run(Trial(**{**vars(one), "store": store}), timeout_s=timeout_s)


def key(outcome: dict[str, Any]) -> tuple[int, int]:
    return num_parameters(CEREBRAS_GPT[outcome["trial"]["size"]]), outcome["trial"]["tokens"]


def earlier(path: Path) -> list[dict[str, Any]]:
    """What earlier runs measured: only the sizes of this run are replaced."""
    return json.loads(path.read_text(encoding="utf-8"))["data"] if path.exists() else []


def save(folder: Path, facts: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
    title = "Sizes: training state many times the memory, bf16, state on disk"
    report.save(folder, "sizes", title, facts, outcomes, [*sections(outcomes), "![time of a step](sizes.png)"])
    plot(outcomes, folder / "sizes.png")


# --- tables and plot -------------------------------------------------------------------------------------------------


def sections(outcomes: list[dict[str, Any]]) -> list[str]:
    good = [o for o in outcomes if "error" not in o]
    parts = [memory_table(good), traffic_table(good)] if good else []
    lines = [*lines_over_parameters(good), *lines_over_tokens(good)]
    parts += ["\n".join(f"- {line['title']}: {line['text']}" for line in lines)] if lines else []
    failed = [f"- {o['trial']['size']}, {o['trial']['tokens']} tokens: {o['error']}" for o in outcomes if "error" in o]
    return [*parts, "Failed:", "\n".join(failed)] if failed else parts


def memory_table(outcomes: Sequence[dict[str, Any]]) -> str:
    """State, budget, peak, time and loss."""
    rows = []
    for outcome in outcomes:
        one, steps, plan = outcome["trial"], report.timed(outcome), outcome["plan"]
        state, peak = outcome["state_bytes"], outcome["peak_bytes"]
        step_s = step_seconds(outcome)
        rows.append(
            [
                one["size"].upper(),
                f"{one['tokens']:,}",
                f"{state / 1e9:.1f}",
                report.gib(one["memory_bytes"]),
                f"{state / peak:.1f}x",
                report.gib(peak),
                report.gib(plan["peak_bytes"]),
                report.off(plan["peak_bytes"], peak),
                str(len(outcome["steps"])),
                f"{step_s:.1f}",
                f"{one['tokens'] / step_s:.1f}",
                f"{report.median(step['cpu_s'] for step in steps):.1f}",
                f"{outcome['steps'][0]['loss']:.3f} to {outcome['steps'][-1]['loss']:.3f}",
                outcome["provenance"]["date"],
            ]
        )
    header = ["", "tokens", "state GB", "budget GiB", "state / peak", "peak GiB", "predicted", "off", "steps"]
    return report.table([*header, "s a step", "tokens/s", "CPU s a step", "loss", "date"], rows)


def traffic_table(outcomes: Sequence[dict[str, Any]]) -> str:
    """Bytes moved against the plan's formula."""
    rows = []
    for outcome in outcomes:
        steps, plan = report.timed(outcome), outcome["plan"]
        row = [outcome["trial"]["size"].upper(), f"{outcome['trial']['tokens']:,}"]
        for way in ("read", "write"):
            moved = report.median(step[f"{way}_bytes"] for step in steps)
            kernel = report.median(step[f"kernel_{way}_bytes"] for step in steps)
            row += [f"{plan[f'{way}_bytes'] / 1e9:.3f}", f"{moved / 1e9:.3f} ({kernel / 1e9:.3f})"]
            row += [report.off(plan[f"{way}_bytes"], moved), f"{moved / parameters(outcome):.1f}"]
        rate = sum(step["read_bytes"] + step["write_bytes"] for step in steps) / sum(s["seconds"] for s in steps)
        waited = report.median(sum(step["stall_s"].values()) for step in steps)
        rows.append([*row, f"{rate / 1e9:.2f}", f"{waited:.2f}", f"{outcome['disk_bytes'] / 1e9:.1f}"])
    header = ["", "tokens", "read GB by formula", "measured (kernel)", "off", "bytes/parameter"]
    header += ["write GB by formula", "measured (kernel)", "off", "bytes/parameter"]
    return report.table([*header, "GB/s moved", "s waited a step", "disk GB"], rows)


def parameters(outcome: dict[str, Any]) -> int:
    return num_parameters(CEREBRAS_GPT[outcome["trial"]["size"]])


def step_seconds(outcome: dict[str, Any]) -> float:
    return report.median(step["seconds"] for step in report.timed(outcome))


def lines_over_parameters(outcomes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each number of tokens that three sizes or more were run with."""
    lines = []
    for tokens in sorted({o["trial"]["tokens"] for o in outcomes}):
        same = [o for o in outcomes if o["trial"]["tokens"] == tokens]
        points = [(parameters(o) / 1e9, step_seconds(o)) for o in same]
        lines += fit(points, f"{tokens:,} tokens, over parameters", "billion parameters")
    return lines


def lines_over_tokens(outcomes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each size that was run with three numbers of tokens or more."""
    lines = []
    for size in dict.fromkeys(o["trial"]["size"] for o in outcomes):
        same = [o for o in outcomes if o["trial"]["size"] == size]
        points = [(o["trial"]["tokens"] / 1000, step_seconds(o)) for o in same]
        lines += fit(points, f"{size.upper()}, over tokens", "thousand tokens")
    return lines


def fit(points: list[tuple[float, float]], title: str, unit: str) -> list[dict[str, Any]]:
    """The straight line through three points or more, with the share of the variance it explains."""
    if len(points) < 3:
        return []
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    r2 = 1 - float((left**2).sum() / ((y - y.mean()) ** 2).sum())
    worst = float(np.abs(left / y).max())
    text = f"{intercept:.2f} s + {slope:.2f} s per {unit}, R2 = {r2:.4f}, farthest point {worst:.0%} off"
    return [{"title": title, "unit": unit, "points": points, "slope": slope, "intercept": intercept, "text": text}]


def plot(outcomes: Sequence[dict[str, Any]], path: Path) -> None:
    """Two panels: seconds a step over parameters and over tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    good = [o for o in outcomes if "error" not in o]
    panels = [
        (lines_over_parameters(good), "parameters (billions)", "Time of a step over parameters"),
        (lines_over_tokens(good), "tokens a step (thousands)", "Time of a step over tokens"),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (lines, label, title) in zip(axes, panels, strict=True):
        for line, colour in zip(lines, plt.rcParams["axes.prop_cycle"].by_key()["color"] * 3, strict=False):
            x, y = np.array(line["points"]).T
            ends = np.array([0.0, x.max() * 1.04])
            axis.plot(x, y, "o", color=colour)
            axis.plot(ends, line["intercept"] + line["slope"] * ends, "-", color=colour, label=legend(line))
        if not lines:
            axis.text(0.5, 0.5, "fewer than three points", ha="center", transform=axis.transAxes)
        axis.set(xlabel=label, ylabel="seconds a step", title=title, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
        if lines:
            axis.set_ylim(0, 1.3 * max(y for line in lines for _, y in line["points"]))  # room for the legend
            axis.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def legend(line: dict[str, Any]) -> str:
    return f"{line['title'].split(',')[0]}: {line['text'].rsplit(',', 1)[0]}"


if __name__ == "__main__":
    main()
