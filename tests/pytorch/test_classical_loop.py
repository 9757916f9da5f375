"""The loop people know: loss = job(x, y); loss.backward(); optimizer.step(); optimizer.zero_grad()."""

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import openwafer as ow
from openwafer.base.errors import ConfigError, RefusedError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2)) for _ in range(3)
        )
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 4, generator=generator)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


Pair = tuple[
    tuple[Callable, nn.Module, torch.optim.Optimizer], tuple[Callable, nn.Module, torch.optim.Optimizer], ow.Job
]


@pytest.fixture(params=["memory", "disk"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """A plain model and a streamed one, each with its optimizer, and the job."""
    jobs = []

    def make(make_model: Callable[[], nn.Module] = Net, **options: Any) -> Pair:
        model = make_model()
        twin = copy.deepcopy(model)
        plain, streamed = make_optimizer(twin), make_optimizer(model)
        path = None if request.param == "memory" else tmp_path / "store"
        job = ow.compile(model, optimizer=streamed, store=path, **{"precision": "fp32", "keep": "none", **options})
        if path is not None:
            job._streamer.configure(0, 0, frozenset())
        jobs.append(job)
        return (twin, twin, plain), (job, model, streamed), job

    yield make
    for job in jobs:
        job.abandon()


def both(pair: Pair, train: Callable[[Callable, nn.Module, torch.optim.Optimizer], list[Tensor]]) -> None:
    """Train both sides with the same code and compare everything."""
    results = []
    for side in pair[:2]:
        torch.manual_seed(11)
        results.append((train(*side), torch.get_rng_state()))
    (plain, plain_random), (streamed, streamed_random) = results
    for left, right in zip(plain, streamed, strict=True):
        assert torch.equal(left, right)
    state = pair[2].state_dict()
    for name, value in pair[0][1].state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(plain_random, streamed_random)


def test_loop(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for step in range(6):
            x, y = batch(step)
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    both(pair(), train)


def test_zero_grad_first_and_scheduler(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=7)
        losses = []
        for step in range(6):
            x, y = batch(step)
            (module if step % 2 else optimizer).zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
        return losses

    both(pair(), train)


def test_accumulation(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for step in range(9):
            x, y = batch(step)
            loss = F.mse_loss(model(x), y) / 3
            loss.backward()
            losses.append(loss.detach())
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
        return losses

    both(pair(), train)


def test_several_forwards_before_backward(pair: Callable[..., Pair]) -> None:
    """Two graphs at once, gone through together or in turn, with forwards without gradients in between."""

    def train(model: Callable, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        results = []
        for step in range(4):
            x, y = batch(step)
            left, right = model(x), model(2 * x)
            module.eval()
            with torch.no_grad():
                results.append(model(y @ torch.ones(4, 8)))
            module.train()
            with torch.no_grad():
                results.append(model(3 * x))  # moves the statistics of the batch norms
            first, second = F.mse_loss(left, y), F.l1_loss(right, y)
            if step % 2:
                (first + second).backward()
            else:
                first.backward(retain_graph=True)
                second.backward()
                first.backward()
            module.eval()
            with torch.inference_mode():
                results.append(model(x).clone())
            module.train()
            optimizer.step()
            optimizer.zero_grad()
        return results

    both(pair(), train)


def test_training_mode_between_forward_and_backward(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        results = []
        for step in range(3):
            x, y = batch(step)
            module.train()
            loss = F.mse_loss(model(x), y)
            module.eval()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            results.append(loss.detach())
        module.train()
        return results

    both(pair(), train)


def test_gradient_of_the_input(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        x, y = batch(0)
        x.requires_grad_()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert x.grad is not None
        (grad,) = torch.autograd.grad(model(x).sum(), x)
        optimizer.zero_grad()
        return [x.grad, grad]

    both(pair(), train)


def test_partly_discarded_graphs(pair: Callable[..., Pair]) -> None:
    """Forwards with gradients whose backward never comes."""

    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        results = []
        for step in range(3):
            x, y = batch(step)
            results.append(model(x).detach())
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return results

    both(pair(), train)


def test_autocast_of_the_user(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for step in range(3):
            x, y = batch(step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.mse_loss(model(x).float(), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    both(pair(), train)


def test_two_calls_in_one_autocast_region(pair: Callable[..., Pair]) -> None:
    """They share the casts, which is only known when it is too late."""
    _, (job, _, _), _ = pair()
    x, _ = batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        job(x)
        with pytest.raises(RefusedError, match="cache_enabled=False"):
            job(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        job(x)
        job(x)


def test_job_zero_grad_drops(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        x, y = batch(0)
        for forget in (optimizer.zero_grad, module.zero_grad):
            F.mse_loss(model(x), y).backward()
            forget()
        F.mse_loss(model(x), y).backward()
        for param in module.parameters():
            param.grad = None
        F.mse_loss(model(2 * x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        return []

    both(pair(), train)


def test_clipping_at_the_parameters_is_refused(pair: Callable[..., Pair]) -> None:
    _, (job, model, _), _ = pair()
    x, y = batch(0)
    F.mse_loss(job(x), y).backward()
    with pytest.raises(RefusedError, match="clip_norm"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def test_zeros_for_gradients_are_refused(pair: Callable[..., Pair]) -> None:
    _, (_, model, optimizer), _ = pair()
    for forget in (optimizer.zero_grad, model.zero_grad):
        with pytest.raises(RefusedError, match="set_to_none"):
            forget(set_to_none=False)


def test_no_zero_grad_is_refused(pair: Callable[..., Pair]) -> None:
    """Plain PyTorch goes on adding to the gradients of the last step."""
    _, (job, _, optimizer), _ = pair()
    x, y = batch(0)
    F.mse_loss(job(x), y).backward()
    optimizer.step()
    with pytest.raises(RefusedError, match="zero_grad"):
        F.mse_loss(job(x), y).backward()


def test_step_between_forward_and_backward_is_refused(pair: Callable[..., Pair]) -> None:
    _, (job, _, optimizer), _ = pair()
    x, y = batch(0)
    late = F.mse_loss(job(x), y)
    F.mse_loss(job(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RefusedError, match="stepped between"):
        late.backward()


def test_gradient_of_a_gradient_is_refused(pair: Callable[..., Pair]) -> None:
    _, (job, _, _), _ = pair()
    x, _ = batch(0)
    x.requires_grad_()
    with pytest.raises(RefusedError, match="create_graph"):
        torch.autograd.grad(job(x).sum(), x, create_graph=True)


def test_closure_is_refused(pair: Callable[..., Pair]) -> None:
    _, (_, _, optimizer), _ = pair()
    with pytest.raises(RefusedError, match="closure"):
        optimizer.step(lambda: torch.zeros(()))


@pytest.mark.parametrize("keep", ["none", "all"])
def test_changed_in_place(pair: Callable[..., Pair], keep: str) -> None:
    """What plain PyTorch refuses is refused, also where saved tensors pass through hooks."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[0](x).exp()
            y = self.layers[1](x)
            x.add_(1)
            return x + y

    plain, streamed, _ = pair(InPlace, keep=keep)
    for model in (plain[0], streamed[0]):
        loss = model(batch(0)[0]).sum()
        with pytest.raises((RuntimeError, RefusedError), match=r"in ?place"):
            loss.backward()


def test_failing_forward_leaves_the_job_usable(pair: Callable[..., Pair]) -> None:
    def train(model: Callable, _: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        losses = []
        for step in range(3):
            x, y = batch(step)
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model(x[:, :5])
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    both(pair(), train)


def test_closed(tmp_path: Path) -> None:
    model = Net()
    optimizer = make_optimizer(model)
    job = ow.compile(model, optimizer=optimizer, precision="fp32", store=tmp_path / "store")
    job.close()
    job.close()
    for use in (lambda: job(batch(0)[0]), lambda: job.step(batch(0)), job.update, job.state_dict):
        with pytest.raises(ConfigError, match="closed"):
            use()
    with pytest.raises((ConfigError, ReferenceError), match=r"closed|no longer"):
        optimizer.step()
    with pytest.raises(ConfigError, match="empty"):
        ow.compile(model, optimizer=make_optimizer(model), precision="fp32")


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_two_jobs_one_after_another(tier: str, tmp_path: Path) -> None:
    """In memory the model goes on with its parameters, on disk the store goes on with everything."""
    model = Net()
    twin = copy.deepcopy(model)
    plain = make_optimizer(twin)
    path = None if tier == "memory" else tmp_path / "store"
    for turn in range(2):
        torch.manual_seed(turn)
        job = ow.compile(model, optimizer=make_optimizer(model), precision="fp32", store=path, loss=square)
        torch.manual_seed(turn)
        for step in range(3):
            job.step(batch(step)[0])
        if path is None and turn:
            plain = make_optimizer(twin)
        torch.manual_seed(turn)
        for step in range(3):
            square(twin(batch(step)[0])).backward()
            plain.step()
            plain.zero_grad()
        state = job.state_dict()
        for name, value in twin.state_dict().items():
            assert torch.equal(value, state[name]), (turn, name)
        job.close()
        if path is None:
            for name, value in model.state_dict().items():
                assert torch.equal(value, state[name]), (turn, name)


def square(output: Tensor, _: Any = None) -> Tensor:
    return output.square().mean()


def test_collected(tmp_path: Path) -> None:
    """A job that is let go of does not keep its model alive."""
    import weakref

    model = Net()
    job = ow.compile(model, optimizer=make_optimizer(model), precision="fp32", store=tmp_path)
    job.abandon()
    gone = weakref.ref(model)
    del job, model
    gc.collect()
    assert gone() is None
