"""BTLM-3B-8K at its true size: real optimizer steps on real text, streamed from disk under a memory budget.

Run: python benchmarks/btlm.py                    (2,646,255,744 parameters under 8 GiB; 75 GB of disk)
     python benchmarks/btlm.py --model hidden_size=256 num_layers=4 num_heads=4 --memory 1GiB   (to try it)

Model, initial weights, optimizer, clipping, muP and learning rates are those of ModelZoo's published file; a step
is one sequence of 2,048 tokens of the Python standard library's source, where the recipe has 1,920. What each step
took stands beside what the plan said before the first. The first step finds new files, whose holes cost the disk
nothing to read, and nothing to update from a step before; the plan is for the others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import torch
import trial
import yaml

from openwafer.base.machine import peak_rss_bytes
from openwafer.data import prepare
from openwafer.models import num_parameters
from openwafer.train.build import decoder_config
from openwafer.train.config import RunConfig
from openwafer.train.dataset import open_dataset
from openwafer.train.demo import standard_library
from openwafer.train.loop import open_job
from openwafer.train.read_config import read_config

DISK_BYTES_PER_PARAMETER = 28
"""Two slots of parameters and two moments, and gradients, all fp32: 2 * 12 + 4."""
DISK_MARGIN_BYTES = 2_000_000_000
LEARNING_RATE, END_LEARNING_RATE, WARMUP_STEPS, DECAY_STEPS = 0.012, 0.00010198, 95, 159541
"""Of the published recipe. Source: ModelZoo 2.10, `params_btlm_2p7b_8k.yaml`."""
TEXT_BYTES = 4_000_000
VOCAB_SIZE = 8192


def main() -> None:
    """Measure in a process of its own, print and save."""
    args = parse()
    if args.child:
        child(args.child)
        return
    facts = report.provenance()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    with trial.store_folder(args.store) as folder:
        config_file = write_config(args, folder)
        config = read_config(config_file)
        require_disk(config, folder)
        outcome = measure(config_file, args.timeout)
    sections = tables(outcome)
    print("\n" + "\n\n".join(sections))
    if "error" in outcome:
        raise SystemExit(outcome["error"])
    report.save(args.results, "btlm", "BTLM-3B-8K: steps at true size, streamed from disk", facts, outcome, sections)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="8GiB", help="budget of the whole process")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="of a sequence")
    parser.add_argument("--sequences", type=int, default=1, help="of a step; each is a micro-batch")
    parser.add_argument("--model", nargs="*", default=[], metavar="KEY=VALUE", help="other sizes, to try the script")
    parser.add_argument("--store", help="folder for the store (default: runs/ of this repository)")
    parser.add_argument("--timeout", type=float, default=14400, metavar="SECONDS")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_config(args: argparse.Namespace, folder: Path) -> Path:
    """The run as `openwafer fit` would read it, beside its text."""
    prepare(standard_library(TEXT_BYTES), folder / "shards", vocab_size=VOCAB_SIZE)
    sizes = {key: int(value) for key, _, value in (text.partition("=") for text in args.model)}
    warmup = {"initial_learning_rate": 0.0, "end_learning_rate": LEARNING_RATE, "total_iters": WARMUP_STEPS}
    decay = {
        "initial_learning_rate": LEARNING_RATE,
        "end_learning_rate": END_LEARNING_RATE,
        "total_iters": DECAY_STEPS,
    }
    tree = {
        "run": str(folder / "run"),
        "memory": args.memory,
        "model": {"preset": "btlm-3b-8k", **sizes},
        "data": {"path": str(folder / "shards"), "sequence_length": args.tokens},
        "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedulers": [{"SequentialLR": {"schedulers": [{"LinearLR": warmup}, {"LinearLR": decay}]}}],
        "train": {
            "steps": args.steps,
            "sequences": args.sequences,
            "micro_batches": args.sequences,
            "clip_norm": 1.0,
            "precision": "bf16",
        },
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def require_disk(config: RunConfig, folder: Path) -> None:
    """Refuse before anything is made."""
    needed = num_parameters(decoder_config(config.model)) * DISK_BYTES_PER_PARAMETER + DISK_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, the store may take {needed / 1e9:.1f} GB: use --store"
        )


def measure(config_file: Path, timeout_s: float) -> dict[str, Any]:
    """What the child found; what it has found so far if it fails."""
    command = [sys.executable, __file__, "--child", str(config_file)]
    code: int | str = "no end in time"
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    answer = config_file.with_name("outcome.json")
    outcome = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"steps": []}
    return outcome if code == 0 else {**outcome, "error": f"training ended early: {code}"}


def child(config_file: Path) -> None:
    """Build, forecast, train; the outcome is written after every step."""
    config = read_config(config_file)
    began = time.perf_counter()
    job = open_job(config)
    batches = open_dataset(config).train()
    forecast = job.forecast(batches.batch(0), micro_batches=config.micro_batches)
    outcome: dict[str, Any] = {
        "parameters": num_parameters(decoder_config(config.model)),
        "made_s": time.perf_counter() - began,
        "threads": torch.get_num_threads(),
        "plan": {**vars(forecast), "step_s": forecast.step_s},
        "steps": [],
    }
    for step in range(config.train.steps):
        record = job.step(batches.batch(step), micro_batches=config.micro_batches)
        outcome["steps"].append(record.to_json())
        outcome["peak_bytes"] = peak_rss_bytes()
        config_file.with_name("outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
        print(
            f"  step {record.step}: {record.seconds:.1f} s, {record.stalled_s:.1f} s waited, loss {record.loss:.4f}, "
            f"{record.bytes_read / 1e9:.1f} GB read, {record.bytes_written / 1e9:.1f} GB written, "
            f"peak {record.peak_rss_bytes / report.GIB:.2f} GiB",
            flush=True,
        )
    job.abandon()


def tables(outcome: dict[str, Any]) -> list[str]:
    """What was planned and what was measured, and one row a step."""
    if not outcome["steps"]:
        return ["no step was finished"]
    plan, steps = outcome["plan"], outcome["steps"]
    later = steps[2:] or steps[1:] or steps
    middle = {key: report.median(step[key] for step in later) for key in ("seconds", "bytes_read", "bytes_written")}
    rows = [
        [
            "s a step",
            f"{plan['step_s']:.1f}",
            f"{middle['seconds']:.1f}",
            report.off(plan["step_s"], middle["seconds"]),
        ],
        _row("peak, GiB", plan["peak_bytes"], outcome["peak_bytes"], report.GIB),
        _row("read a step, GB", plan["read_bytes"], middle["bytes_read"], 1e9),
        _row("written a step, GB", plan["write_bytes"], middle["bytes_written"], 1e9),
    ]
    summary = (
        f"{outcome['parameters']:,} parameters, {plan['state_bytes'] / 1e9:.1f} GB of training state; built in "
        f"{outcome['made_s']:.0f} s. Measured: the median of {len(later)} steps after the second."
    )
    return [summary, report.table(["", "plan", "measured", "plan is off by"], rows), _steps(steps)]


def _row(name: str, planned: float, measured: float, unit: float) -> list[str]:
    return [name, f"{planned / unit:.2f}", f"{measured / unit:.2f}", report.off(planned, measured)]


def _steps(steps: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            str(step["step"]),
            f"{step['loss']:.4f}",
            f"{step['learning_rate']:.3g}",
            f"{step['seconds']:.1f}",
            f"{sum(step['stall_s'].values()):.1f}",
            f"{step['bytes_read'] / 1e9:.2f}",
            f"{step['bytes_written'] / 1e9:.2f}",
            f"{step['tokens'] / step['seconds']:.1f}",
            f"{step['peak_rss_bytes'] / report.GIB:.2f}",
        ]
        for step in steps
    ]
    header = ["step", "loss", "learning rate", "s", "s waited", "GB read", "GB written", "tokens/s", "peak GiB"]
    return report.table(header, rows)


if __name__ == "__main__":
    main()
