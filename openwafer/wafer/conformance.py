"""Runs the public examples: every commands_wse2.sh and commands_wse3.sh below a folder, each in a copy of its own.

Run: make conformance EXAMPLES=path/to/csl-examples
Scripts see our `cslc` and `cs_python` first on PATH. Python packages the examples want (scipy, pandas, matplotlib) are
not ours to install; a script that lacks one fails and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = "%python_sdk_paint"
"""What scripts of SDK 2.10 say where those of 1.4 say `cs_python run.py`: no shell command, but a name its own
test-suite replaces."""


@dataclass(frozen=True)
class Outcome:
    """One script: how it ended, its last line if it failed, and what sim_stats.json says."""

    script: str
    passed: bool
    seconds: float
    message: str
    cycles: int
    tile_cycles_per_s: float


def main() -> int:
    """Exit status: 1 if a script fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=Path, help="folder with the examples")
    parser.add_argument("--match", default="", help="only scripts whose path contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="of one script")
    args = parser.parse_args()
    scripts = [p for p in sorted(args.examples.rglob("commands_wse?.sh")) if args.match in str(p)]
    if not scripts:
        parser.error(f"no commands_wse2.sh or commands_wse3.sh with {args.match!r} below {args.examples}")
    passed = 0
    with tempfile.TemporaryDirectory() as scratch:
        path = _commands(Path(scratch))
        with ThreadPoolExecutor(args.jobs) as pool:
            for outcome in pool.map(lambda s: _run(s, args.examples, Path(scratch), path, args.timeout), scripts):
                passed += outcome.passed
                state = "pass" if outcome.passed else "FAIL"
                speed = f"{outcome.cycles} cycles, {outcome.tile_cycles_per_s / 1e6:.1f} M tile-cycles/s"
                end = speed if outcome.passed else outcome.message
                print(f"{state}  {outcome.script}  {outcome.seconds:.1f} s  {end}", flush=True)
    print(f"{passed} of {len(scripts)} pass")
    return 0 if passed == len(scripts) else 1


def _commands(scratch: Path) -> str:
    """A PATH with our two commands in front."""
    folder = scratch / "bin"
    folder.mkdir()
    for name in ("cslc", "cs_python"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m openwafer.wafer.cli_{name} "$@"\n')
        command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def _run(script: Path, root: Path, scratch: Path, path: str, timeout: float) -> Outcome:
    """One script in a copy of the examples' tree."""
    shown = str(script.relative_to(root))
    with tempfile.TemporaryDirectory(dir=scratch) as copy:
        shutil.copytree(root, Path(copy) / "tree", symlinks=True, ignore=shutil.ignore_patterns(".git", "out*"))
        folder = Path(copy) / "tree" / script.relative_to(root).parent
        own = folder / script.name
        own.write_text(own.read_text().replace(PLACEHOLDER, "cs_python run.py"))
        modules = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(modules)}
        started = time.perf_counter()
        try:
            done = subprocess.run(
                ["bash", f"./{script.name}"], cwd=folder, env=environment, capture_output=True, text=True,
                timeout=timeout, check=False,
            )  # fmt: skip
            status, text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, text = 1, f"not done after {timeout:g} s"
        seconds = time.perf_counter() - started
        message = next(_telling(text), "no output")
        stats = [json.loads(path.read_text()) for path in folder.rglob("sim_stats.json")]
        cycles = sum(int(own["cycle_count"]) for own in stats)
        speed = max((float(own["tile_cycles_per_second"]) for own in stats), default=0.0)
        return Outcome(shown, status == 0, seconds, message[:200], cycles, speed)


def _telling(text: str) -> Iterator[str]:
    """Lines that say why, the best first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    yield from (line for line in reversed(lines) if "rror" in line)
    yield from reversed(lines)


if __name__ == "__main__":
    sys.exit(main())
