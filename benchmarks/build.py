"""Builds a model larger than memory with `ow.init`, and reports the peak of the process.

Run: python benchmarks/build.py              (13B: 52 GB of disk, a few minutes)
     python benchmarks/build.py --size 1.3b --memory 1GiB

The model's own constructors run; parameters go to the store as they are made. Exits with 1 if the peak is above the
budget. That the bits are those of plain construction is a test (tests/pytorch/test_construct.py).
"""

from __future__ import annotations

import argparse
import sys
import time

import report
import trial

import openwafer as ow
from openwafer.base.machine import peak_rss_bytes
from openwafer.base.units import format_bytes, format_count, format_seconds, parse_bytes
from openwafer.models import CEREBRAS_GPT, Decoder


def main() -> int:
    """Build, print, compare with the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="13b", choices=CEREBRAS_GPT)
    parser.add_argument("--memory", default="2GiB", help="what the whole process may take")
    parser.add_argument("--store", help="folder for the store (default: runs/ of this repository)")
    args = parser.parse_args()
    print("\n".join(f"{name}: {value}" for name, value in report.provenance().items()))
    budget_bytes = parse_bytes(args.memory)
    with trial.store_folder(args.store) as folder:
        started = time.perf_counter()
        with ow.init(folder / "store", memory=budget_bytes // 4):
            model = Decoder(CEREBRAS_GPT[args.size])
        seconds = time.perf_counter() - started
        count = sum(param.numel() for param in model.parameters())
        peak = peak_rss_bytes()
        print(
            f"{args.size}: {format_count(count)} parameters, {format_bytes(4 * count)} in fp32, built in "
            f"{format_seconds(seconds)}; peak RSS {format_bytes(peak)} of {format_bytes(budget_bytes)}"
        )
    return int(peak > budget_bytes)


if __name__ == "__main__":
    sys.exit(main())
