"""A small training run that can die anywhere and be taken up again; its bits at the end tell whether it was exact.

The model has dropout and batch-norm, the loader's position travels in `job.extra`, and the batches draw on Python's,
numpy's and torch's generators, so that every kind of state matters.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import openwafer as ow
from openwafer.pytorch.job import Job
from openwafer.streaming.files import FileLayer
from openwafer.streaming.store import Store

SAMPLES, FEATURES, CLASSES = 8, 6, 4


@dataclass(frozen=True)
class Setup:
    """What is run; `tight` streams pages and spills gradients, and keeps one page's optimizer state in memory."""

    steps: int = 4
    commit_every: int = 1
    micro_batches: int = 1
    hidden_size: int = 24
    num_blocks: int = 3
    tight: bool = True


class Block(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.relu(self.norm(self.linear(x))))


class Model(nn.Module):
    def __init__(self, setup: Setup):
        super().__init__()
        self.first = nn.Linear(FEATURES, setup.hidden_size)
        self.blocks = nn.ModuleList(Block(setup.hidden_size) for _ in range(setup.num_blocks))
        self.last = nn.Linear(setup.hidden_size, CLASSES)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.last(x), y)


def open_job(setup: Setup, folder: Path | None, files: FileLayer | None = None, timeout_s: float = 300.0) -> Job:
    """A new job, or the one that was left in the folder."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    model = Model(setup)
    store = Store(folder, files=files, timeout_s=timeout_s)
    try:
        job = ow.compile(
            model,
            optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
            store=store,
            precision="fp32",
            clip_norm=1.0,
            commit_every=setup.commit_every,
            keep="none",
        )
    except BaseException:
        store.close()
        raise
    if setup.tight and folder is not None:
        sizes = [spec.param_bytes for spec in job._specs]
        job._streamer.configure(2 * max(sizes), max(sizes), frozenset([1]))
    job.extra = job.extra or {"position": 0}
    return job


def batch(position: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples at a position of the loader, with noise from every generator."""
    data = torch.Generator().manual_seed(position)
    x = torch.randn(SAMPLES, FEATURES, generator=data)
    y = torch.randint(CLASSES, (SAMPLES,), generator=data)
    noise = random.random() + float(np.random.rand())
    return x + 0.1 * noise * torch.rand(FEATURES), y


def train(job: Job, setup: Setup, returned: Callable[[int], None] = lambda step: None) -> None:
    """The steps that are left; `returned` hears of each."""
    while job.step_count < setup.steps:
        position = job.extra["position"]
        samples = batch(position)
        job.set_extra({"position": position + 1})
        job.step(samples, micro_batches=setup.micro_batches)
        returned(job.step_count)


def bits(job: Job) -> dict[str, bytes]:
    """Everything that a run ends with, by name."""
    found: dict[str, bytes] = {}
    for name, value in job.state_dict().items():
        found[name] = _raw(value)
    for name, state in job.optimizer_state():
        for key, value in state.items():
            found[f"{name}.{key}"] = _raw(value)
    found["torch"] = _raw(torch.get_rng_state())
    found["numpy"] = repr(
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    ).encode()
    found["python"] = repr(random.getstate()).encode()
    found["step"] = str(job.step_count).encode()
    found["extra"] = repr(job.extra).encode()
    return found


def digest(found: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name in sorted(found):
        whole.update(name.encode() + b"=" + found[name] + b"\n")
    return whole.hexdigest()


def uninterrupted(setup: Setup, folder: Path | None = None) -> dict[str, bytes]:
    """The bits of the run when nothing happens to it."""
    job = open_job(setup, folder)
    try:
        train(job, setup)
        return bits(job)
    finally:
        job.abandon()


def _raw(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return str(value).encode()
