"""Kills, fails and falsifies a training run, and wants plain PyTorch's bits at its end. Run: python benchmarks/crash.py

A small model with dropout and batch-norm; see tests/crash_campaign.py for what is done to it. Every row is checked:
no step is lost but the one in flight, and parameters, moments, buffers, random states and loader position are equal.
"""

import argparse
import dataclasses
import logging
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.crash_campaign import FAULTS, LARGE, SETUPS, Killer, Outcome, count_operations, inject, simulate
from tests.crash_run import plain


def kill(which: signal.Signals, number: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Outcome]]:
    """Signals, shared out among the setups."""
    steps, life_s = (24, 0.2) if number >= 100 else (10, 0.1)
    setups = {name: (dataclasses.replace(setup, steps=steps), life_s) for name, setup in SETUPS.items()}
    if number >= 100:
        setups["pages of several chunks"] = (LARGE, 0.4)
    for index, (name, (setup, life_s)) in enumerate(setups.items()):
        killer = Killer(setup, folder, random.Random(seed + index), which, life_s)
        share = number // len(setups) + (index < number % len(setups))
        if share:
            killer.kill(share)
            yield name, killer.runs, killer.outcome


def simulated(number: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Outcome]]:
    """Deaths of the disk layer, shared out among the setups."""
    for index, (name, setup) in enumerate(SETUPS.items()):
        share = number // len(SETUPS) + (index < number % len(SETUPS))
        reference, operations = plain(setup), count_operations(setup, folder)
        total = Outcome()
        for run in range(share):
            add(total, simulate(setup, seed * 1000 + 5 * run, folder, reference, operations))
        if share:
            yield name, share, total


def injected(number: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Outcome]]:
    """Faults, the same number of each kind."""
    setups = list(SETUPS.values())
    references = [plain(setup) for setup in setups]
    operations = [count_operations(setup, folder) for setup in setups]
    for name in FAULTS:
        total = Outcome()
        for run in range(number):
            which = run % len(setups)
            add(total, inject(setups[which], seed * 1000 + run, name, folder, references[which], operations[which]))
        if number:
            yield name, number, total


def add(total: Outcome, other: Outcome) -> None:
    total.died_in += other.died_in
    total.refused += other.refused
    total.repeated = max(total.repeated, other.repeated)


def table(title: str, rows: Callable[[], Iterator[tuple[str, int, Outcome]]]) -> None:
    """Print rows as they come."""
    started = time.monotonic()
    print(f"\n{title}\n{'':34}{'runs':>6}{'deaths':>8}{'redone':>8}  in the middle of / stopped with")
    runs = deaths = 0
    for name, count, outcome in rows():
        died = sum(outcome.died_in.values())
        runs, deaths = runs + count, deaths + died
        how = ", ".join(f"{what} {n}" for what, n in (outcome.died_in + outcome.refused).most_common())
        print(f"{name:34}{count:6}{died:8}{outcome.repeated:8}  {how}", flush=True)
    print(f"{'all ended with the bits of PyTorch':34}{runs:6}{deaths:8}{'':10}{time.monotonic() - started:.0f} s")


def main() -> None:
    """Print the tables; any difference raises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=250, help="SIGKILLs of a process")
    parser.add_argument("--interrupts", type=int, default=100, help="SIGINTs, after which the job is closed")
    parser.add_argument("--crashes", type=int, default=250, help="runs whose disk layer dies, half of them unflushed")
    parser.add_argument("--faults", type=int, default=40, help="runs for each kind of error or flipped byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to put the stores (default: a temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
    logging.getLogger("openwafer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="openwafer-crash-", dir=args.folder) as temporary:
        folder = Path(temporary) / "store"
        # First, while this process has run no torch operation: it forks the ones that it kills.
        if args.kills:
            table("SIGKILL at a random instant", lambda: kill(signal.SIGKILL, args.kills, args.seed, folder))
        if args.interrupts:
            table("Ctrl-C at a random instant", lambda: kill(signal.SIGINT, args.interrupts, args.seed, folder))
        if args.crashes:
            table("death at a disk operation, in one process", lambda: simulated(args.crashes, args.seed, folder))
        if args.faults:
            table("errors and flipped bytes", lambda: injected(args.faults, args.seed, folder))


if __name__ == "__main__":
    main()
