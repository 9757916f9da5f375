"""A small training run that can die anywhere and be taken up again; its bits at the end tell whether it was exact.

The model has dropout and batch-norm, the loader's position travels in `job.extra`, and the batches draw on Python's,
numpy's and torch's generators, so that every kind of state matters.
"""

import hashlib
import random
from collections.abc import Callable, Iterable
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
    """What is run.

    Attributes:
        optimizer: "AdamW", updated in pieces, or "Adafactor", updated whole.
        tight: pages are streamed and gradients spilled, and one page keeps its optimizer state in memory.
    """

    steps: int = 4
    commit_every: int = 1
    micro_batches: int = 1
    hidden_size: int = 24
    num_blocks: int = 3
    optimizer: str = "AdamW"
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


def seed_everything() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def make_optimizer(params: Iterable[nn.Parameter], kind: str = "AdamW") -> torch.optim.Optimizer:
    return getattr(torch.optim, kind)(params, lr=1e-2, weight_decay=0.1)


def open_job(setup: Setup, store: Store | Path | None, files: FileLayer | None = None) -> Job:
    """A new job, or the one that was left in the folder."""
    seed_everything()
    model = Model(setup)
    owner = store if isinstance(store, Store) else Store(store, files=files)
    job: Job | None = None
    try:
        job = ow.compile(
            model,
            optimizer=lambda params: make_optimizer(params, setup.optimizer),
            store=owner,
            precision="fp32",
            clip_norm=1.0,
            commit_every=setup.commit_every,
            keep="none",
        )
        if setup.tight and owner.path is not None:
            sizes = [page.spec.param_bytes for page in job._streamer.pages]
            job._streamer.configure(2 * max(sizes), 0, frozenset([1]))
    except BaseException:
        if job is not None:
            job.abandon()
        owner.close()
        raise
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
    found = {name: _raw(value) for name, value in job.state_dict().items()}
    for name, state in job.optimizer_state():
        found.update({f"{name}.{key}": _raw(value) for key, value in state.items()})
    return found | _random_bits() | {"step": _raw(job.step_count), "extra": _raw(job.extra)}


def _random_bits() -> dict[str, bytes]:
    words = np.random.get_state()
    return {
        "torch": _raw(torch.get_rng_state()),
        "numpy": words[1].tobytes() + _raw(words[2:]),
        "python": _raw(random.getstate()),
    }


def digest(found: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name in sorted(found):
        whole.update(name.encode() + b"=" + found[name] + b"\n")
    return whole.hexdigest()


def plain(setup: Setup) -> dict[str, bytes]:
    """The bits of the same run in plain PyTorch, to which nothing happens."""
    seed_everything()
    model = Model(setup)
    optimizer = make_optimizer(model.parameters(), setup.optimizer)
    for position in range(setup.steps):
        x, y = batch(position)
        for part in zip(x.tensor_split(setup.micro_batches), y.tensor_split(setup.micro_batches), strict=True):
            (model(*part) / setup.micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found = {name: _raw(value) for name, value in model.state_dict().items()}
    for name, param in model.named_parameters():
        state = {**optimizer.state[param], "step": int(optimizer.state[param]["step"])}
        found.update({f"{name}.{key}": _raw(value) for key, value in state.items()})
    extra = {"position": setup.steps}
    return found | _random_bits() | {"step": _raw(setup.steps), "extra": _raw(extra)}


def _raw(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return str(value).encode()
