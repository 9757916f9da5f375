"""Every measurement of README.md, one after another; `make bench` runs this. Results: benchmarks/results/.

--quick runs all of them small, in a few minutes, to see that they work; its results go to runs/bench-quick/.
The real ones take hours and want a machine on which nothing else runs. One that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import report

HERE = Path(__file__).parent
QUICK_RESULTS = HERE.parent / "runs" / "bench-quick"


@dataclass(frozen=True)
class Measurement:
    """A script and its arguments.

    Attributes:
        quick: arguments of the small form.
        saves: it writes its own results; otherwise what it prints is kept.
    """

    script: str
    full: str = ""
    quick: str = ""
    saves: bool = True


MEASUREMENTS = (
    Measurement("bench_optimizer.py", "", "--params 1000000 --rounds 3", saves=False),
    Measurement(
        "train_speed.py",
        "--size 590m --tokens 2048 8192 --share 0.35 0.65 --rounds 2 --steps 2",
        "--size 111m --tokens 256 --share 0.6 0.75 --rounds 1 --steps 1",
    ),
    Measurement(
        "peers.py",
        "--size 590m --tokens 2048 --share 0.35 --rounds 2 --steps 2",
        "--size 111m --tokens 256 --share 0.6 --rounds 1 --steps 1 --swap-rounds 0",
    ),
    Measurement("sizes.py", "", "--sizes 111m --tokens 256 --line-size 111m --line-tokens 64 128 --warmup 1"),
    Measurement("build.py", "", "--size 111m --memory 1GiB", saves=False),
    Measurement("wafer_timing.py", saves=False),
    Measurement("wafer_speed.py", "--whole", saves=False),
    Measurement("crash.py", "", "--kills 4 --interrupts 4 --crashes 8 --faults 2", saves=False),
)


def main() -> None:
    """Run what was asked for."""
    args = parse()
    results = args.results or (QUICK_RESULTS if args.quick else report.RESULTS)
    wanted = [m for m in MEASUREMENTS if not args.only or m.script.removesuffix(".py") in args.only]
    states = [(m.script, *run(m, args, results)) for m in wanted]
    print("\n" + report.table(["", "minutes", ""], [(name, f"{s / 60:.1f}", state) for name, state, s in states]))
    print(f"results: {results}")
    if any(state != "done" for _, state, _ in states):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    names = [m.script.removesuffix(".py") for m in MEASUREMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, to see that everything works")
    parser.add_argument("--only", nargs="*", choices=names, help="some of them")
    parser.add_argument("--deepspeed-python", help="Python that has DeepSpeed; see peers.py")
    parser.add_argument("--store", help="folder for stores (default: runs/ of this repository)")
    parser.add_argument("--results", type=Path, help="folder for results")
    return parser.parse_args()


def run(measurement: Measurement, args: argparse.Namespace, results: Path) -> tuple[str, float]:
    """Run one; returns how it ended and the seconds it took."""
    command = [str(HERE / measurement.script)]
    command += shlex.split(measurement.quick if args.quick else measurement.full)
    if measurement.saves:
        command += ["--results", str(results)]
        command += ["--store", args.store] if args.store else []
    if measurement.script == "peers.py" and args.deepspeed_python:
        command += ["--deepspeed-python", args.deepspeed_python]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if not Path(command[0]).exists():
        return "missing", 0.0
    started = time.monotonic()
    if measurement.saves:
        code = subprocess.run([sys.executable, *command], check=False).returncode
    else:
        code = run_and_keep(command, results / f"{Path(command[0]).stem}.md")
    return "done" if code == 0 else f"failed, exit status {code}", time.monotonic() - started


def run_and_keep(command: list[str], path: Path) -> int:
    """Run a script that only prints, and keep what it printed."""
    printed = []
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    report.save_text(path, command, "".join(printed))
    return process.returncode


if __name__ == "__main__":
    main()
