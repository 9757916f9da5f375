"""Peers on the same model, memory and disk: DeepSpeed ZeRO-3 with NVMe offload on its CPU accelerator, PyTorch in swap.

Run: python benchmarks/peers.py --size 590m --tokens 2048 --deepspeed-python VENV/bin/python

DeepSpeed needs an environment of its own (about 6 minutes, most of it building its two extensions at first use):
    apt-get install libaio-dev ninja-build g++ python3-dev
    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy setuptools wheel ninja py-cpuinfo
    DS_BUILD_OPS=0 DS_ACCELERATOR=cpu VENV/bin/pip install --no-build-isolation deepspeed==0.19.8

Settings tried with 111M, 256 tokens, once each (2 busy cores of an AMD EPYC, 2026-11): unpipelined with 5 buffers and
subgroups of the largest tensor needs the least memory (2.9 GiB; one large subgroup 4.7, pipelined with 16 buffers 5.2);
pipelining makes the optimizer step about a sixth shorter; more I/O threads, larger buckets and parameters kept in
memory change nothing beyond noise. So three rows: "defaults" recomputes blocks and leaves every setting to DeepSpeed,
"lean" is our tuning for least memory, "fast" our tuning for speed (pipelined, nothing recomputed).

PyTorch in swap is the plain loop while another process locks all memory but the streamed trial's budget: see swap.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
import swap
import train_speed
import trial
from trial import Trial

DEEPSPEED = {
    "defaults": {"untuned": True},
    "lean": {},
    "fast": {"pipelined": True, "checkpoint": False},
}
SWAPPING = "plain in swap"


def main() -> None:
    """Measure, print and save."""
    args = parse()
    facts = report.provenance()
    outcomes: list[dict[str, Any]] = []
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    with trial.store_folder(args.store) as folder:
        for number in range(args.rounds):
            print(f"{args.tokens} tokens, round {number + 1} of {args.rounds}", flush=True)
            for name, one in configurations(args, number, outcomes):
                with trial.one_store(folder) as store:
                    outcome = run(args, name, dataclasses.replace(one, store=store), folder)
                outcomes.append({"name": name, "round": number, **outcome})
                save(args, facts, outcomes)
    print("\n" + "\n\n".join(sections(args, outcomes)))
    if any("error" in outcome for outcome in outcomes):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="590m", choices=trial.CEREBRAS_GPT)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--share", type=float, nargs="+", default=[0.35], help="budgets, of plain's peak memory")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process, after one of warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps of a streamed process; see trial.py")
    parser.add_argument("--deepspeed-python", help="Python that has DeepSpeed; left out: no DeepSpeed rows")
    parser.add_argument("--deepspeed", nargs="*", default=list(DEEPSPEED), choices=DEEPSPEED, help="its rows")
    parser.add_argument("--swap-rounds", type=int, default=1, help="rounds that run plain PyTorch in swap; 0: never")
    parser.add_argument("--swap-gib", type=float, default=16, help="size of the swap file")
    parser.add_argument("--swap-memory-gib", type=float, help="memory left to it (default: the first streamed budget)")
    parser.add_argument("--store", help="folder for stores and the swap file (default: runs/ of this repository)")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="of one process")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def configurations(
    args: argparse.Namespace, number: int, outcomes: list[dict[str, Any]]
) -> Iterator[tuple[str, Trial]]:
    """Names and trials of a round."""
    yield from train_speed.configurations(args, args.tokens, outcomes)
    if args.deepspeed_python:
        for row in args.deepspeed:
            yield f"DeepSpeed, {row}", Trial("deepspeed", args.size, args.tokens, args.steps, options=DEEPSPEED[row])
    peak = train_speed.plain_peak(outcomes, args.tokens)
    if number < args.swap_rounds and peak is not None:
        left = args.swap_memory_gib * report.GIB if args.swap_memory_gib else args.share[0] * peak
        yield SWAPPING, Trial("plain", args.size, args.tokens, steps=1, options={"left_bytes": int(left)})


def run(args: argparse.Namespace, name: str, one: Trial, folder: Path) -> dict[str, Any]:
    if one.mode == "deepspeed":
        python = Path(args.deepspeed_python).absolute()
        environment = {
            "DS_ACCELERATOR": "cpu",
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # ninja
            "TORCH_EXTENSIONS_DIR": str(python.parents[1] / "extensions"),
            "PYTHONWARNINGS": "ignore",
        }
        script = Path(__file__).with_name("deepspeed_trial.py")
        return trial.run(one, python=str(python), script=script, environment=environment, timeout_s=args.timeout)
    if name != SWAPPING:
        return trial.run(one, timeout_s=args.timeout)
    left = one.options["left_bytes"]
    print(f"  making a swap file of {args.swap_gib:g} GiB and leaving {report.gib(left)} GiB of memory", flush=True)
    try:
        with swap.small_machine(left, folder, int(args.swap_gib * report.GIB)):
            return trial.run(one, timeout_s=args.timeout)
    except swap.NoSwapError as error:
        print(f"    no swap here: {error}", flush=True)
        return {"trial": dataclasses.asdict(one), "error": f"no swap here: {error}"}


def save(args: argparse.Namespace, facts: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
    title = f"Peers: Cerebras-GPT {args.size.upper()}, bf16, {args.tokens:,} tokens a step"
    report.save(args.results, f"peers_{args.size}_{args.tokens}", title, facts, outcomes, sections(args, outcomes))


def sections(args: argparse.Namespace, outcomes: list[dict[str, Any]]) -> list[str]:
    """Tables, and what was left out."""
    names = list(dict.fromkeys(o["name"] for o in outcomes))
    peers = [name for name in names if name.startswith("DeepSpeed")]
    parts = [train_speed.speed_table(outcomes, ("plain", "checkpointed", *peers))]
    against = comparison_table(outcomes, peers)
    if against:
        parts += ["Streamed against DeepSpeed; memory is the process's peak:", against]
    streamed = [o for o in outcomes if o["trial"]["mode"] == "streamed" and "error" not in o]
    if streamed:
        parts += ["Predicted against measured, bytes a step:", train_speed.prediction_table(streamed)]
    parts += ["Losses, first round (DeepSpeed's parameters are bf16):", train_speed.loss_table(outcomes)]
    notes = [f"- {o['name']}, round {o['round'] + 1}: {o['error']}" for o in outcomes if "error" in o]
    swapped = [o for o in outcomes if o["name"] == SWAPPING and o.get("steps")]
    notes += [
        f"- {SWAPPING}: {report.gib(o['trial']['options']['left_bytes'])} GiB of memory left to it, "
        f"up to {report.gib(max(s['swapped_bytes'] for s in o['steps']))} GiB of it in swap at the end of a step"
        for o in swapped
    ]
    if not args.deepspeed_python:
        notes.append("- DeepSpeed: not run, no --deepspeed-python was given")
    return [*parts, "\n".join(notes)] if notes else parts


def comparison_table(outcomes: list[dict[str, Any]], peers: list[str]) -> str:
    """Speed and memory of every streamed row as a multiple of every DeepSpeed row."""
    groups = train_speed.by_name(outcomes)
    rows = []
    for name, mine in groups.items():
        if mine[0]["trial"]["mode"] != "streamed":
            continue
        for peer in peers:
            wall = train_speed.ratios(mine, groups[peer])
            peaks = [max((o.get("peak_bytes", 0) for o in group), default=0) for group in (mine, groups[peer])]
            if wall and peaks[1]:
                rows.append([f"{name} / {peer}", f"{report.median(wall):.2f}", f"{peaks[0] / peaks[1]:.2f}"])
    return report.table(["", "tokens/s", "memory"], rows) if rows else ""


if __name__ == "__main__":
    main()
