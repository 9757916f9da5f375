"""One way of training one model, in a process of its own: plain PyTorch, with checkpointing, or streamed.

The parent calls `run`; it starts this file (or another that speaks the same way) with a Trial as JSON and reads its
Outcome. A process for each trial makes peak memory the trial's own. All trials of a comparison have the same model
class, initial bits, batch, precision (bf16 autocast over fp32 weights), fused AdamW and clipping. The batch is random
tokens, the same at every step so that the loss must fall, and every label is the next token, never the input itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openwafer.base import machine
from openwafer.models import CEREBRAS_GPT, Decoder, num_parameters

REPOSITORY = Path(__file__).parents[1]
MICRO_BATCH_TOKENS = 2048
CLIP_NORM = 1.0
LEARNING_RATE = 1e-4
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a child process trains.

    Attributes:
        mode: plain, checkpointed, streamed; others belong to other scripts.
        tokens: of one step, cut into micro-batches of at most MICRO_BATCH_TOKENS.
        memory_bytes: budget of a streamed trial; store: folder for its state, removed afterwards.
        warmup: steps that are run first and not timed. A plain optimizer makes its state in the first; a streamed one
            reads it for the first time in the second, from holes in new files, which costs the disk nothing.
        options: what only another script knows.
    """

    mode: str
    size: str
    tokens: int
    steps: int
    warmup: int = 1
    memory_bytes: int | None = None
    store: str | None = None
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def micro_batches(self) -> int:
        return -(-self.tokens // MICRO_BATCH_TOKENS)

    @property
    def num_parameters(self) -> int:
        return num_parameters(CEREBRAS_GPT[self.size])


# --- in the child ----------------------------------------------------------------------------------------------------


def make_model(trial: Trial) -> Decoder:
    """The model with the initial bits that every trial of this seed has."""
    torch.manual_seed(trial.seed)
    return Decoder(CEREBRAS_GPT[trial.size])


def make_batch(trial: Trial) -> dict[str, torch.Tensor]:
    """Random tokens [micro_batches, tokens / micro_batches] and the token after each."""
    shape = (trial.micro_batches, trial.tokens // trial.micro_batches + 1)
    generator = torch.Generator().manual_seed(trial.seed + 1)
    text = torch.randint(0, CEREBRAS_GPT[trial.size].vocab_size, shape, generator=generator)
    return {"input_ids": text[:, :-1].contiguous(), "labels": text[:, 1:].contiguous()}


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)


def run_plain(trial: Trial) -> dict[str, Any]:
    """An ordinary loop, all in memory; "checkpointed" recomputes every block in the backward pass."""
    model = make_model(trial)
    if trial.mode == "checkpointed":
        for block in model.layers:
            _checkpoint(block)
    optimizer = make_optimizer(model)
    batch = make_batch(trial)

    def step() -> dict[str, Any]:
        total = 0.0
        for index in range(trial.micro_batches):
            part = {name: tensor.chunk(trial.micro_batches)[index] for name, tensor in batch.items()}
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**part) / trial.micro_batches
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": total}

    return {"steps": run_steps(trial, step)}


def run_streamed(trial: Trial) -> dict[str, Any]:
    """The same, streamed from disk under a memory budget."""
    import openwafer as ow

    assert trial.store is not None and trial.memory_bytes is not None
    started = time.perf_counter()
    with ow.init(trial.store, memory=min(512 << 20, trial.memory_bytes // 4)):
        model = make_model(trial)
    job = ow.compile(
        model, optimizer=make_optimizer(model), memory=trial.memory_bytes, precision="bf16", clip_norm=CLIP_NORM
    )
    made_s = time.perf_counter() - started
    batch = make_batch(trial)
    disk: list[int] = []

    def step() -> dict[str, Any]:
        record = job.step(batch, trial.micro_batches)
        return {
            "loss": record.loss,
            "read_bytes": record.bytes_read,
            "write_bytes": record.bytes_written,
            "stall_s": record.stall_s,
            "schedule": record.schedule,
        }

    try:
        steps = run_steps(trial, step, after=lambda: disk.append(folder_bytes(Path(trial.store or ""))))
        plan = job.planner.plan
        assert plan is not None
        return {
            "steps": steps,
            "made_s": made_s,
            "disk_bytes": max(disk),
            "state_bytes": job.planner.state_bytes,
            "plan": {"peak_bytes": plan.peak_bytes, "read_bytes": plan.read_bytes, "write_bytes": plan.write_bytes},
        }
    finally:
        job.abandon()


def run_steps(
    trial: Trial, step: Callable[[], dict[str, Any]], after: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Warm-up and timed steps, each with wall and CPU seconds and the kernel's own count of disk traffic."""
    rows = []
    for index in range(trial.warmup + trial.steps):
        disk, cpu, started = _disk_bytes(), os.times(), time.perf_counter()
        row = step()
        seconds, spent, moved = time.perf_counter() - started, os.times(), _disk_bytes()
        row |= {
            "timed": index >= trial.warmup,
            "seconds": seconds,
            "cpu_s": spent.user + spent.system - cpu.user - cpu.system,
            "system_s": spent.system - cpu.system,
            "peak_bytes": machine.peak_rss_bytes(),
            "swapped_bytes": _swapped_bytes(),
            "kernel_read_bytes": moved[0] - disk[0],
            "kernel_write_bytes": moved[1] - disk[1],
        }
        rows.append(row)
        _answer({"steps": rows, "peak_bytes": row["peak_bytes"], "error": "ended early"})
        note = f"    step {index + 1}: {seconds:.2f} s, loss {row['loss']:.4f}, peak {row['peak_bytes'] / GIB:.2f} GiB"
        print(note, file=sys.stderr, flush=True)
        after()
    return rows


def folder_bytes(folder: Path) -> int:
    """Disk blocks that the files of a folder hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def child(modes: Mapping[str, Callable[[Trial], dict[str, Any]]]) -> None:
    """Main of a child process: the trial is the first argument, the file for its outcome the second."""
    trial = Trial(**json.loads(sys.argv[1]))
    try:
        outcome = modes[trial.mode](trial)
        outcome["peak_bytes"] = machine.peak_rss_bytes()
        outcome["children_peak_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    except Exception as error:  # noqa: BLE001  # told to the parent, which decides
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
    _answer(outcome)
    sys.exit(1 if "error" in outcome else 0)


def _answer(outcome: Mapping[str, Any]) -> None:
    Path(sys.argv[2]).write_text(json.dumps(outcome), encoding="utf-8")


def _swapped_bytes() -> int:
    """Memory of this process that is in swap now. Source: /proc/self/status, proc(5)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSwap:")), 0)


def _checkpoint(block: torch.nn.Module) -> None:
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    block.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)


def _disk_bytes() -> tuple[int, int]:
    """Bytes this process made the disk read and write. Source: /proc/self/io, proc(5)."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0, 0
    counts = {name: int(count) for name, count in (line.split(": ") for line in lines)}
    return counts["read_bytes"], counts["write_bytes"]


# --- in the parent ---------------------------------------------------------------------------------------------------


def run(
    trial: Trial,
    *,
    python: str = sys.executable,
    script: str | Path = __file__,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 7200.0,
) -> dict[str, Any]:
    """Run a trial in a process of its own.

    Returns:
        Its outcome, with "error" in place of "steps" if it failed; "trial", "load" (run queue before it) in any case.
    """
    load = os.getloadavg()[0]
    print(f"  {describe(trial)} (load {load:.1f})", flush=True)
    variables = {
        **os.environ,
        # libgomp's threads spin while they wait, by default; beside other work on few cores that costs minutes.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(REPOSITORY),
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "outcome.json"
        command = [python, str(script), json.dumps(dataclasses.asdict(trial)), str(answer)]
        process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        outcome = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"error": "ended early"}
        if outcome.get("error") == "ended early":
            outcome["error"] = f"no end after {timeout_s:.0f} s" if code is None else f"exit status {code}"
    if "error" in outcome:
        print(f"    failed: {outcome['error']}", flush=True)
    return {"trial": dataclasses.asdict(trial), "load": load, **outcome}


def describe(trial: Trial) -> str:
    """A trial in a few words."""
    budget = "" if trial.memory_bytes is None else f" in {trial.memory_bytes / GIB:.2f} GiB"
    return f"{trial.mode}{budget}: {trial.size}, {trial.tokens} tokens in {trial.micro_batches} micro-batches"


@contextlib.contextmanager
def store_folder(parent: str | None) -> Iterator[Path]:
    """A new folder for stores, on the disk of `parent` or of this repository; removed afterwards."""
    base = Path(parent) if parent is not None else REPOSITORY / "runs"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def one_store(folder: Path) -> Iterator[str]:
    """A place for one trial's store; removed afterwards."""
    path = folder / "store"
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    child({"plain": run_plain, "checkpointed": run_plain, "streamed": run_streamed})
