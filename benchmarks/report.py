"""Writes what a benchmark measured: NAME.json with everything, NAME.md with tables, both with how it was made."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from openwafer.base import machine

RESULTS = Path(__file__).parent / "results"
GIB = 1 << 30


def provenance() -> dict[str, Any]:
    """Command, date and machine of this process."""
    script = os.path.relpath(sys.argv[0], Path(__file__).parents[1])
    return {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": machine.num_cores(),
        "memory_bytes": machine.memory_total_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def save(folder: Path, name: str, title: str, facts: dict[str, Any], data: Any, sections: Iterable[str]) -> None:
    """Write both files; called after every trial, so that what was measured survives a crash."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"title": title, "provenance": facts, "data": data}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    head = [f"# {title}", _made(facts)]
    (folder / f"{name}.md").write_text("\n\n".join([*head, *sections]) + "\n", encoding="utf-8")


def save_text(path: Path, command: Sequence[str], printed: str) -> None:
    """Keep what a script that only prints has printed."""
    script = os.path.relpath(command[0], Path(__file__).parents[1])
    facts = {**provenance(), "command": shlex.join(["python", script, *command[1:]])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {path.stem}\n\n{_made(facts)}\n\n```\n{printed.strip()}\n```\n", encoding="utf-8")
    document = {"title": path.stem, "provenance": facts, "data": printed.splitlines()}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns aligned so that it reads as text too."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def off(predicted: float, measured: float) -> str:
    """How far a prediction is from what was measured."""
    return "-" if not measured else f"{(predicted / measured - 1) * 100:+.1f}%"


def median(values: Iterable[float]) -> float:
    """The median, NaN of nothing."""
    values = list(values)
    return statistics.median(values) if values else float("nan")


def timed(outcome: dict[str, Any]) -> list[dict[str, Any]]:
    """The timed steps of an outcome, none if it failed."""
    return [step for step in outcome.get("steps", []) if step["timed"]]


def _made(facts: dict[str, Any]) -> str:
    """How a result was made, in two lines of Markdown."""
    parts = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / GIB:.1f} GiB",
        f"torch {facts['torch']} ({facts['torch_threads']} threads), Python {facts['python']}",
        f"commit {facts['commit']}",
    ]
    return f"`{facts['command']}`, {facts['date']}.  \n{', '.join(parts)}."


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "../openwafer"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")
