"""Every optimizer, with parameter groups and schedulers, against the optimizer itself in a plain loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adafactor, Adam, AdamW, lr_scheduler

import openwafer as ow
from openwafer.base.errors import ConfigError, RefusedError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 12)) for _ in range(2)
        )
        self.conv = nn.Conv1d(12, 6, 3)
        self.head = nn.Linear(6, 16)
        self.unused = nn.Linear(5, 5)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        x = self.conv(x.transpose(1, 2)).mean(-1)
        return F.cross_entropy(self.head(x), labels)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(16, (8, 6), generator=generator), torch.randint(16, (8,), generator=generator)


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0, "lr": 3e-3},
    ]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": AdamW,
    "adamw-foreach": lambda p: AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "adamw-loop": lambda p: AdamW(p, lr=1e-2, foreach=False, betas=(0.8, 0.95), eps=1e-6),
    "adamw-maximize": lambda p: AdamW(p, lr=1e-3, maximize=True),
    "adamw-tensor-lr": lambda p: AdamW(p, lr=torch.tensor(1e-2)),
    "adam": lambda p: Adam(p, weight_decay=0.1),
    "adam-amsgrad": lambda p: Adam(p, lr=1e-2, amsgrad=True),
    "adam-fused-amsgrad": lambda p: Adam(p, lr=1e-2, amsgrad=True, fused=True),
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd-momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd-dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "sgd-nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd-fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, weight_decay=0.1),
    "lion": lambda p: ow.Lion(p, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_plain(name: str, tier: str, equal_to_plain: Callable) -> None:
    equal_to_plain(Net, batch, optimizer=OPTIMIZERS[name], tier=tier, clip=0.3 if tier == "disk" else None, steps=5)


@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "adam-amsgrad", "sgd-momentum", "adafactor", "lion"])
def test_groups(name: str, equal_to_plain: Callable) -> None:
    equal_to_plain(Net, batch, optimizer=OPTIMIZERS[name], groups=decay_groups, tier="mixed", clip=1.0, micro_batches=4)


@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "sgd-momentum", "adafactor"])
def test_accumulation(name: str, equal_to_plain: Callable) -> None:
    for count in (1, 2):
        equal_to_plain(Net, batch, optimizer=OPTIMIZERS[name], tier="disk", clip=1.0, backwards=3, micro_batches=count)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=7),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=2),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, equal_to_plain: Callable) -> None:
    """OneCycleLR and CyclicLR move the momentum as well."""
    for kind in ("adamw", "sgd-momentum"):
        equal_to_plain(
            Net, batch, optimizer=OPTIMIZERS[kind], groups=decay_groups, schedule=SCHEDULES[name], tier="disk", steps=6
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "adamw-fused", "sgd-momentum", "adafactor", "lion"])
def test_other_dtypes(name: str, dtype: torch.dtype, equal_to_plain: Callable) -> None:
    equal_to_plain(lambda: Net().to(dtype), batch, optimizer=OPTIMIZERS[name], tier="disk", clip=0.5)


def test_mixed_dtypes(equal_to_plain: Callable) -> None:
    """Norms are taken by dtype, whatever the order of the parameters."""

    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[0].double()
            self.conv.double()
            self.blocks[1].to(torch.bfloat16)

        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            x = self.embed(ids)
            for block, dtype in zip(self.blocks, (torch.float64, torch.bfloat16), strict=True):
                x = x + block(x.to(dtype)).float()
            x = self.conv(x.double().transpose(1, 2)).mean(-1)
            return F.cross_entropy(self.head(x.float()), labels)

    for tier in ("memory", "disk"):
        equal_to_plain(Mixed, batch, tier=tier, clip=0.1)


def test_large_clipping(equal_to_plain: Callable) -> None:
    """Parameters of several chunks, whose norm is a long sum."""

    def make_model() -> nn.Module:
        return Wide()

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(1100, 1000)
            self.two = nn.Linear(1000, 1100)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x))).square().mean()

    def rows(step: int) -> Tensor:
        return torch.randn(4, 1100, generator=torch.Generator().manual_seed(step))

    for tier in ("memory", "disk"):
        equal_to_plain(make_model, rows, tier=tier, clip=1e-3, optimizer=OPTIMIZERS["adamw-fused"])


def test_nan_gradient_skips_the_step(tmp_path: Path) -> None:
    for path in (None, tmp_path / "store"):
        torch.manual_seed(0)
        model = Net()
        job = ow.compile(model, optimizer=AdamW(model.parameters()), store=path, precision="fp32", loss=lambda o, _: o)
        job.step(batch(0))
        before = job.state_dict()
        moments = {n: {k: v if k == "step" else v.clone() for k, v in s.items()} for n, s in job.optimizer_state()}
        for bad in (float("nan"), float("inf")):
            job._loss = lambda output, _, bad=bad: output * bad
            record = job.step(batch(1))
            assert record.skipped
            assert any("skipped" in note for note in record.notes)
        after = job.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        for name, state in job.optimizer_state():
            for key, value in state.items():
                same = value == moments[name][key] if key == "step" else torch.equal(value, moments[name][key])
                assert same, (name, key)
        job._loss = lambda output, _: output
        assert not job.step(batch(2)).skipped
        job.close()


def test_refused(tmp_path: Path) -> None:
    model = Net()
    with pytest.raises(RefusedError, match="LBFGS"):
        ow.compile(model, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(RefusedError, match="differentiable"):
        ow.compile(model, optimizer=Adam(model.parameters(), differentiable=True))
    with pytest.raises(ConfigError, match="not the model's"):
        ow.compile(model, optimizer=SGD(Net().parameters()))
    with pytest.raises(ConfigError, match="not in the optimizer"):
        ow.compile(model, optimizer=SGD(model.embed.parameters()))
    used = AdamW(model.parameters())
    model(*batch(0)).backward()
    used.step()
    with pytest.raises(RefusedError, match="state"):
        ow.compile(model, optimizer=used, precision="fp32")


def test_sparse_gradient_is_refused() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 12, sparse=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.embed(ids).square().mean()

    model = Sparse()
    job = ow.compile(model, optimizer=SGD(model.parameters()), precision="fp32")
    with pytest.raises(RefusedError, match="sparse"):
        job.step(batch(0)[0])


def test_compiled_with_gradients_is_refused() -> None:
    """Plain PyTorch would add to the gradients that are there already."""
    model = Net()
    model(*batch(0)).backward()
    with pytest.raises(RefusedError, match="gradient"):
        ow.compile(model, optimizer=SGD(model.parameters()))
