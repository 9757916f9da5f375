"""Speed against memory: plain PyTorch, plain with checkpointing, and streamed under shares of plain's peak memory.

Run: python benchmarks/train_speed.py --size 590m --tokens 2048 8192 --share 0.35 0.65 --rounds 2 --steps 2

Every configuration is a process of its own; they take turns, round after round, so that a noisy machine disturbs them
alike. Ratios are taken inside a round. The budgets come from plain's peak in the first round.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import report
import trial
from trial import Trial

BASELINES = ("plain", "checkpointed")


def main() -> None:
    """Measure, print and save."""
    args = parse()
    facts = report.provenance()
    outcomes: list[dict[str, Any]] = []
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    with trial.store_folder(args.store) as folder:
        for tokens in args.tokens:
            for number in range(args.rounds):
                print(f"{tokens} tokens, round {number + 1} of {args.rounds}", flush=True)
                for name, one in configurations(args, tokens, outcomes):
                    with trial.one_store(folder) as store:
                        outcome = trial.run(dataclasses.replace(one, store=store), timeout_s=args.timeout)
                    outcomes.append({"name": name, "round": number, **outcome})
                    save(args, facts, outcomes)
    print("\n" + "\n\n".join(sections(outcomes)))
    if any("error" in outcome for outcome in outcomes):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="590m", choices=trial.CEREBRAS_GPT)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192], help="tokens of a step")
    parser.add_argument("--share", type=float, nargs="+", default=[0.35, 0.65], help="budgets, of plain's peak memory")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process, after one of warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of a streamed process; see trial.py")
    parser.add_argument("--store", help="folder for the stores (default: runs/ of this repository)")
    parser.add_argument("--timeout", type=float, default=7200, metavar="SECONDS", help="of one process")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def configurations(args: argparse.Namespace, tokens: int, outcomes: list[dict[str, Any]]):
    """Names and trials of a round; a streamed one is made once plain's peak is known."""
    for mode in BASELINES:
        yield mode, Trial(mode, args.size, tokens, args.steps)
    peak = plain_peak(outcomes, tokens)
    if peak is None:
        print("  plain PyTorch did not run: no budget to stream under")
        return
    for share in args.share:
        budget = int(share * peak)
        yield streamed_name(share), Trial("streamed", args.size, tokens, args.steps, args.warmup, memory_bytes=budget)


def streamed_name(share: float) -> str:
    return f"streamed, {share:.0%} of the memory"


def plain_peak(outcomes: list[dict[str, Any]], tokens: int) -> int | None:
    """Peak memory of the first plain run with so many tokens."""
    same = (o for o in outcomes if o["name"] == "plain" and o["trial"]["tokens"] == tokens and "error" not in o)
    first = next(same, None)
    return None if first is None else first["peak_bytes"]


def save(args: argparse.Namespace, facts: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
    title = f"Training speed: Cerebras-GPT {args.size.upper()}, bf16, state on disk"
    report.save(args.results, f"train_speed_{args.size}", title, facts, outcomes, sections(outcomes))


def sections(outcomes: list[dict[str, Any]]) -> list[str]:
    """Tables, one set for each number of tokens."""
    parts = []
    for tokens in dict.fromkeys(o["trial"]["tokens"] for o in outcomes):
        here = [o for o in outcomes if o["trial"]["tokens"] == tokens]
        batches = -(-tokens // trial.MICRO_BATCH_TOKENS)
        parts += [f"## {tokens:,} tokens a step ({batches} micro-batches)", speed_table(here, BASELINES)]
        streamed = [o for o in here if o["trial"]["mode"] == "streamed"]
        if any("error" not in o for o in streamed):
            parts += ["Predicted against measured, bytes a step:", prediction_table(streamed)]
            parts += ["Seconds a step in which computing waited, by cause:", stall_table(streamed)]
        parts += ["Losses, first round:", loss_table(here)]
        failed = [f"- {o['name']}, round {o['round'] + 1}: {o['error']}" for o in here if "error" in o]
        if failed:
            parts += ["Failed:", "\n".join(failed)]
    return parts


def by_name(outcomes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome["name"], []).append(outcome)
    return groups


def speed(outcome: dict[str, Any], clock: str = "seconds") -> float:
    """Median tokens per second of wall (or CPU) time."""
    return report.median(outcome["trial"]["tokens"] / step[clock] for step in report.timed(outcome))


def ratios(mine: list[dict[str, Any]], others: list[dict[str, Any]], clock: str = "seconds") -> list[float]:
    """Mine against the other's, in each round that both finished."""
    theirs = {o["round"]: speed(o, clock) for o in others}
    found = [speed(o, clock) / theirs[o["round"]] for o in mine if o["round"] in theirs]
    return [ratio for ratio in found if not math.isnan(ratio)]


def speed_table(outcomes: list[dict[str, Any]], references: tuple[str, ...]) -> str:
    """Tokens per second, ratios and memory; a ratio is the median, then every round's, then by CPU time."""
    groups = by_name(outcomes)
    header = ["", "tokens/s", *[f"of {name}: median (rounds; CPU time)" for name in references]]
    header += ["CPU s a step", "peak GiB", "of plain"]
    rows = []
    for name, mine in groups.items():
        steps = [step for o in mine for step in report.timed(o)]
        if not steps:
            rows.append([name, "failed", *["-" for _ in references], "-", "-", "-"])
            continue
        tokens_s = report.median(mine[0]["trial"]["tokens"] / step["seconds"] for step in steps)
        peak = max(o.get("peak_bytes", 0) for o in mine)
        plain = max((o.get("peak_bytes", 0) for o in groups.get("plain", [])), default=0)
        rows.append(
            [
                name,
                f"{tokens_s:.1f}",
                *[ratio_text(mine, groups.get(reference, [])) for reference in references],
                f"{report.median(step['cpu_s'] for step in steps):.1f}",
                report.gib(peak),
                f"{peak / plain:.0%}" if plain else "-",
            ]
        )
    return report.table(header, rows)


def ratio_text(mine: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    wall, cpu = ratios(mine, others), ratios(mine, others, "cpu_s")
    if not wall:
        return "-"
    rounds = ", ".join(f"{ratio:.2f}" for ratio in wall)
    return f"{report.median(wall):.2f} ({rounds}; {report.median(cpu):.2f})"


def prediction_table(outcomes: list[dict[str, Any]]) -> str:
    """Plan against measurement; traffic is counted by the store and, in brackets, by the kernel."""
    rows = []
    for outcome in outcomes:
        steps, plan = report.timed(outcome), outcome.get("plan")
        if not steps or plan is None:
            continue
        row = [f"{outcome['name']}, round {outcome['round'] + 1}", report.gib(outcome["trial"]["memory_bytes"])]
        row += [report.gib(plan["peak_bytes"]), report.gib(outcome["peak_bytes"])]
        row += [report.off(plan["peak_bytes"], outcome["peak_bytes"])]
        for way in ("read", "write"):
            moved = report.median(step[f"{way}_bytes"] for step in steps)
            kernel = report.median(step[f"kernel_{way}_bytes"] for step in steps)
            row += [f"{plan[f'{way}_bytes'] / 1e9:.3f}", f"{moved / 1e9:.3f} ({kernel / 1e9:.3f})"]
            row += [report.off(plan[f"{way}_bytes"], moved)]
        rows.append([*row, f"{outcome['disk_bytes'] / 1e9:.1f}", steps[-1]["schedule"]])
    header = ["", "budget GiB", "peak predicted", "measured", "off", "read GB predicted", "measured (kernel)", "off"]
    header += ["write GB predicted", "measured (kernel)", "off", "disk GB", "schedule"]
    return report.table(header, rows)


def stall_table(outcomes: list[dict[str, Any]]) -> str:
    """Median seconds a step by cause."""
    stalls = {f"{o['name']}, round {o['round'] + 1}": report.timed(o) for o in outcomes if report.timed(o)}
    causes = sorted({cause for steps in stalls.values() for step in steps for cause in step["stall_s"]})
    rows = []
    for name, steps in stalls.items():
        waits = [report.median(step["stall_s"].get(cause, 0.0) for step in steps) for cause in causes]
        step_s = report.median(step["seconds"] for step in steps)
        rows.append([name, f"{step_s:.2f}", f"{sum(waits):.2f}", *[f"{wait:.2f}" for wait in waits]])
    return report.table(["", "step", "waited", *causes], rows)


def loss_table(outcomes: list[dict[str, Any]]) -> str:
    """The loss of every step, and the largest difference from plain's."""
    first = {o["name"]: [s["loss"] for s in o["steps"]] for o in outcomes if o["round"] == 0 and "steps" in o}
    plain = first.get("plain", [])
    rows = []
    for name, losses in first.items():
        apart = max((abs(a - b) for a, b in zip(losses, plain, strict=False)), default=math.nan)
        rows.append([name, ", ".join(f"{loss:.5f}" for loss in losses), f"{apart:.1e}"])
    return report.table(["", "loss of each step, warm-up first", "largest difference from plain"], rows)


if __name__ == "__main__":
    main()
