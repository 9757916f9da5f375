"""`openwafer demo`: the main job on real text, with a kill -9 in the middle, in under five minutes on two cores.

The text is the Python standard library's own source, which every machine has. The parent prepares it, watches the
training process through its event file as anyone could, kills it, resumes it with as many steps as the measured speed
leaves time for, and reports what the records say. It trains nothing itself and measures nothing twice.
"""

import dataclasses
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from openwafer.base.errors import RunError
from openwafer.base.events import Mark, StepRecord, read_events, read_steps
from openwafer.base.units import format_bytes, format_count, format_seconds, parse_bytes
from openwafer.data import prepare
from openwafer.models import num_parameters
from openwafer.train.build import decoder_config
from openwafer.train.config import ModelConfig

# fp32 master weight, two fp32 Adam moments and an fp32 gradient.
STATE_BYTES_PER_PARAMETER = 16
_TICK_S = 0.05


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large and how long; `seconds` is for everything, from the first line to the last."""

    model: dict[str, object]
    memory: str
    seconds: float
    text_bytes: int
    sequence_length: int
    sequences: int
    micro_batches: int
    learning_rate: float
    prompt: str
    new_tokens: int
    # Kept back for the second start, generation and the picture.
    reserve_s: float
    vocab_size: int = 8192


FULL = Plan(
    # The tokenizer has 8,192 tokens; the embedding keeps Cerebras-GPT's 50,257 rows, so that 111M are 111M.
    model={"preset": "cerebras-gpt-111m"},
    memory="1280MiB",
    seconds=270.0,
    text_bytes=12_000_000,
    sequence_length=256,
    sequences=4,
    micro_batches=1,
    learning_rate=6e-4,
    prompt="import os\n\n\ndef ",
    new_tokens=40,
    reserve_s=45.0,
)
QUICK = dataclasses.replace(
    FULL,
    model={"hidden_size": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 8192, "max_positions": 256},
    seconds=50.0,
    text_bytes=2_000_000,
    learning_rate=2e-3,
    reserve_s=15.0,
)


def run_demo(root: Path, *, quick: bool = False, memory: str | None = None, console: Console | None = None) -> int:
    """Run the whole show in the folder ``root`` and return the exit code.

    Raises:
        RunError: ``root`` holds something else, or the training process failed.
    """
    console = console or Console()
    plan = QUICK if quick else FULL
    plan = plan if memory is None else dataclasses.replace(plan, memory=memory)
    parse_bytes(plan.memory, "--memory")
    started = time.monotonic()
    deadline = started + plan.seconds
    shards, run = root / "shards", root / "run"
    _make_room(root, shards, run)
    model = decoder_config(ModelConfig.model_validate(plan.model))
    count = num_parameters(model)
    state = format_bytes(count * STATE_BYTES_PER_PARAMETER)
    _say(console, f"Training state of {format_count(count)} parameters: {state}. Memory budget: {plan.memory}.")
    _prepare(plan, shards, console)
    config_file = root / "config.yaml"
    config_file.write_text(yaml.safe_dump(_config(plan, shards, run), sort_keys=False))

    _say(console, "Training; how many steps there is time for is settled on resuming, when the speed is known.\n")
    events = run / "events.jsonl"
    middle = time.monotonic() + 0.42 * (deadline - plan.reserve_s - time.monotonic())
    before = _train_and_kill(["fit", str(config_file)], events, middle, console)
    steps = _steps_in_time(before, deadline - plan.reserve_s - time.monotonic())
    _say(console, f"\nResuming, to step {steps}: openwafer resume {run} train.steps={steps}\n")
    _require_success(_spawn(["resume", str(run), f"train.steps={steps}"]).wait(), "resume")

    _say(console, f"\nWriting: openwafer generate {run} --prompt {plan.prompt!r} --max-new-tokens {plan.new_tokens}\n")
    command = ["generate", str(run), "--prompt", plan.prompt, "--max-new-tokens", str(plan.new_tokens)]
    _require_success(_spawn(command).wait(), "generate")

    _say(console, f"\nDrawing: openwafer view {run}\n")
    _require_success(_spawn(["view", str(run)]).wait(), "view")
    _report(plan, count, before, events, run / "curves.png", time.monotonic() - started, console)
    return 0


def _make_room(root: Path, shards: Path, run: Path) -> None:
    known = {shards.name, run.name, "config.yaml"}
    if root.is_dir():
        strangers = sorted(entry.name for entry in root.iterdir() if entry.name not in known)
        if strangers:
            raise RunError(f"{root} holds {strangers[0]!r}, which no demo made; give an empty folder with --dir.")
        if run.exists() and not (root / "config.yaml").exists():
            raise RunError(f"{run} was not made by a demo, which would remove it; give an empty folder with --dir.")
    # A demo always begins anew; only the prepared text is used again.
    shutil.rmtree(run, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)


def _prepare(plan: Plan, shards: Path, console: Console) -> None:
    if shards.is_dir():
        _say(console, f"Using the tokens prepared before in {shards}.")
        return
    started = time.monotonic()
    sources = standard_library(plan.text_bytes)
    _say(console, f"Preparing the source of the Python standard library: {len(sources)} files, training a tokenizer.")
    tokens = prepare(sources, shards, vocab_size=plan.vocab_size)
    _say(console, f"{format_count(len(tokens))} tokens in {format_seconds(time.monotonic() - started)}.")


def standard_library(limit_bytes: int) -> list[Path]:
    """Python files of the standard library, its tests and installed packages left out, up to a total size."""
    root = Path(sysconfig.get_paths()["stdlib"])
    # Tables of character sets are no text.
    others = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3", "pydoc_data"}
    others.add("encodings")
    files, total = [], 0
    for path in sorted(root.rglob("*.py")):
        if others.isdisjoint(path.relative_to(root).parts) and path.stat().st_size:
            total += path.stat().st_size
            if total > limit_bytes:
                break
            files.append(path)
    return files


def _config(plan: Plan, shards: Path, run: Path) -> dict[str, object]:
    return {
        "run": str(run),
        "memory": plan.memory,
        "model": plan.model,
        "data": {"path": str(shards), "sequence_length": plan.sequence_length},
        "optimizer": {"name": "adamw", "lr": plan.learning_rate},
        # Constant after the warm-up: how many steps there is time for is known only when some are done.
        "schedule": {"warmup_steps": 8, "decay": "constant"},
        "train": {"steps": 1000, "sequences": plan.sequences, "micro_batches": plan.micro_batches},
    }


def _spawn(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "openwafer.cli", *arguments])


def _train_and_kill(arguments: Sequence[str], events: Path, until: float, console: Console) -> list[StepRecord]:
    """Train until the moment ``until``, then kill -9 in the middle of a step; the steps that were done."""
    child = _spawn(arguments)
    try:
        # A few steps are needed whatever the clock says, or there is nothing to resume.
        while time.monotonic() < until or len(_steps_so_far(events)) < 4:
            if child.poll() is not None:
                _require_success(child.returncode, "fit")
                raise RunError("the training process ended before it could be killed; run the demo without --quick.")
            time.sleep(_TICK_S)
        steps = _steps_so_far(events)
        _wait_for_step(events, len(steps) + 1, child)
        steps = _steps_so_far(events)
        # Half a step further it is in the middle of the next one: pages are being read and written.
        time.sleep(0.5 * steps[-1].seconds)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    steps = _steps_so_far(events)
    _say(console, f"\nkill -9 in the middle of step {steps[-1].step + 1}.")
    return steps


def _wait_for_step(events: Path, count: int, child: subprocess.Popen[bytes]) -> None:
    while len(_steps_so_far(events)) < count and child.poll() is None:
        time.sleep(_TICK_S)


def _steps_so_far(events: Path) -> list[StepRecord]:
    return read_steps(events) if events.exists() else []


def _steps_in_time(before: Sequence[StepRecord], remaining_s: float) -> int:
    """The step to stop at, so that the rest of the training fits into ``remaining_s``."""
    seconds = sorted(record.seconds for record in before)
    middle_s = seconds[len(seconds) // 2]
    # The new process needs a while to start, about what the first one took before its first step.
    return before[-1].step + max(4, int(remaining_s / (1.05 * middle_s)))


def _require_success(code: int, what: str) -> None:
    if code == -signal.SIGINT or code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code != 0:
        raise RunError(f"openwafer {what} ended with exit code {code}; what it said is above.")


def _report(
    plan: Plan,
    num_params: int,
    before: Sequence[StepRecord],
    events: Path,
    curves: Path,
    seconds: float,
    console: Console,
) -> None:
    steps = read_steps(events)
    peak = max(record.peak_rss_bytes for record in [*steps, *before])
    table = Table(box=box.SIMPLE, show_header=False, title="What happened", title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    state_bytes = num_params * STATE_BYTES_PER_PARAMETER
    table.add_row("training state", f"{format_bytes(state_bytes)}: weights, two moments, gradients in fp32")
    budget = parse_bytes(plan.memory)
    over = "" if peak <= budget else ": OVER the budget; this is a bug, please report it"
    table.add_row("peak RSS", f"{format_bytes(peak)} of a budget of {format_bytes(budget)}{over}")
    table.add_row("I/O hidden", hidden_share(steps))
    table.add_row(
        "loss", f"{steps[0].loss:.3f} \N{RIGHTWARDS ARROW} {_mean_loss(steps[-5:]):.3f} in {len(steps)} steps"
    )
    table.add_row("tokens/s", f"{sum(r.tokens for r in steps) / sum(r.seconds for r in steps):,.0f}")
    table.add_row("kill -9", _compare_repeated(before, events))
    table.add_row("curves", str(curves))
    table.add_row("time", format_seconds(seconds))
    console.print()
    console.print(table)


def hidden_share(steps: Sequence[StepRecord]) -> str:
    """How much of the disk's working time cost the training nothing."""
    stalled_s = sum(record.stalled_s for record in steps)
    io_s = [record.io_s for record in steps if record.io_s is not None]
    moved = format_bytes(sum(record.bytes_read + record.bytes_written for record in steps))
    waited = f"waited {stalled_s / sum(record.seconds for record in steps):.1%} of the time for it"
    if not io_s or sum(io_s) == 0.0:
        return f"{moved} moved; {waited}"
    return f"{max(0.0, 1.0 - stalled_s / sum(io_s)):.0%} of {sum(io_s):.0f} s of disk work ({moved}); {waited}"


def _compare_repeated(before: Sequence[StepRecord], events: Path) -> str:
    """The steps that were done, lost to the kill, and done again must have the same losses to the bit."""
    again = {record.step: record.loss for record in read_steps(events)}
    resumes = [mark for mark in read_events(events) if isinstance(mark, Mark) and mark.event == "resume"]
    resumed = int(resumes[-1].fields["step"])
    lost = [record for record in before if record.step > resumed]
    if not lost:
        return f"after step {before[-1].step}; resumed there, no finished step had to be repeated"
    same = all(again[record.step] == record.loss for record in lost)
    verdict = "with the same loss to the last bit" if same else "WITH ANOTHER LOSS: this is a bug, please report it"
    return f"after step {before[-1].step}; resumed after {resumed}, {len(lost)} done again {verdict}"


def _mean_loss(steps: Sequence[StepRecord]) -> float:
    losses = [record.loss for record in steps if not record.skipped]
    return sum(losses) / max(1, len(losses))


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
