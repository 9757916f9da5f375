"""Trains a model twice, by a plain PyTorch loop and by streaming, and wants every bit of the two to be equal."""

import copy
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import openwafer as ow

SEED = 1234
TIERS = ("memory", "disk", "mixed")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """No test depends on the one before it."""
    _seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@dataclasses.dataclass
class Record:
    """What a training run leaves behind."""

    losses: list[float] = dataclasses.field(default_factory=list)
    gradients: list[dict[str, torch.Tensor] | None] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    state: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    moments: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    random: tuple = ()
    learning_rates: list[list[float]] = dataclasses.field(default_factory=list)


def adamw(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)


@pytest.fixture
def equal_to_plain(tmp_path: Path) -> Callable[..., ow.Job]:
    """The harness: a function of a model's maker, a batch's maker and the setting."""
    return partial(assert_equal_to_plain, tmp_path)


def assert_equal_to_plain(
    tmp_path: Path,
    make_model: Callable[[], nn.Module],
    make_batch: Callable[[int], Any],
    *,
    steps: int = 3,
    micro_batches: int = 1,
    tier: str = "memory",
    clip: float | None = None,
    keep: str | list[str] = "none",
    optimizer: Callable[[Any], torch.optim.Optimizer] = adamw,
    groups: Callable[[nn.Module], Any] = nn.Module.parameters,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    precision: str = "fp32",
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    look: bool = True,
    backwards: int = 1,
    order: str | None = None,
    twin: Callable[[], nn.Module] | None = None,
    window: int | None = None,
    group: int | None = None,
    **options: Any,
) -> ow.Job:
    """Train twice; every loss, gradient, parameter, buffer, moment and random state must have the same bits.

    Args:
        make_batch: batch of a step; it may not use the global random state.
        look: compare gradients at every even step (odd ones go through `job.step`).
        backwards: backward calls per update (gradient accumulation).
        order: expected start of `job.schedule`.
        twin: makes the same model again, where a copy would not do.
        window: bytes for pages on the device; None holds all of them.
        group: micro-batches that run together; None: all of them.
    """
    torch.manual_seed(SEED)
    model = make_model()
    setting = dict(
        steps=steps, micro_batches=micro_batches, clip=clip, precision=precision, loss=loss, look=look,
        backwards=backwards, make_batch=make_batch,
    )  # fmt: skip
    torch.manual_seed(SEED)
    copied = copy.deepcopy(model) if twin is None else twin()
    plain_optimizer = optimizer(groups(copied))
    plain = _train_plain(copied, plain_optimizer, schedule and schedule(plain_optimizer), **setting)

    streamed_optimizer = optimizer(groups(model))
    job = ow.compile(
        model,
        optimizer=streamed_optimizer,
        store=None if tier == "memory" else tmp_path / f"store-{len(list(tmp_path.iterdir()))}",
        precision=precision,
        clip_norm=clip,
        loss=loss,
        scheduler=schedule and schedule(streamed_optimizer),
        keep=keep,
        commit_every=options.pop("commit_every", 2),
        **options,
    )
    squeeze(job, tier)
    job._accumulator.group = group
    if window is not None:
        job._front.pool_bytes = window
    try:
        streamed = _train_streamed(job, **setting)
        compare(plain, streamed)
        if order is not None:
            assert job.schedule.startswith(order), (job.schedule, job.plain_order)
    finally:
        job.abandon()
    return job


def squeeze(job: ow.Job, tier: str) -> None:
    """Give a job on disk so little memory that pages and gradients leave all the time."""
    if tier == "memory":
        return
    specs = [page.spec for page in job._streamer.pages]
    half = (
        frozenset(spec.index for spec in specs if spec.index % 2 and spec.trainable) if tier == "mixed" else frozenset()
    )
    largest = max((spec.param_bytes for spec in specs), default=0)
    job._streamer.configure(2 * largest if tier == "mixed" else 0, 0, half)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def cut(batch: Any, count: int) -> list[Any]:
    """Equal micro-batches along the first dimension."""
    if count == 1:
        return [batch]
    if isinstance(batch, dict):
        parts = {key: cut(value, count) for key, value in batch.items()}
        return [{key: parts[key][index] for key in batch} for index in range(count)]
    if isinstance(batch, tuple):
        return list(zip(*(cut(value, count) for value in batch), strict=True))
    if isinstance(batch, torch.Tensor) and batch.dim():
        return list(batch.tensor_split(count))
    return [batch] * count


def call(model: Callable, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def loss_of(output: Any, batch: Any, loss: Callable | None) -> torch.Tensor:
    if loss is not None:
        return loss(output, batch)
    return output if isinstance(output, torch.Tensor) else output.loss


def _train_plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    *,
    steps: int,
    micro_batches: int,
    clip: float | None,
    precision: str,
    loss: Callable | None,
    look: bool,
    backwards: int,
    make_batch: Callable[[int], Any],
) -> Record:
    record = Record()
    _seed(SEED)
    for step in range(steps):
        for turn in range(backwards):
            losses = []
            for part in cut(make_batch(step * backwards + turn), micro_batches):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                    value = loss_of(call(model, part), part, loss)
                value = value / micro_batches if micro_batches > 1 else value
                value.backward()
                losses.append(value.detach().float())
        record.losses.append(float(torch.stack(losses).sum()))
        named = dict(model.named_parameters())
        grads = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        record.gradients.append(grads if look and step % 2 == 0 else None)
        if clip is not None:
            record.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        record.learning_rates.append([float(group["lr"]) for group in optimizer.param_groups])
    record.random = random_bits()
    record.state = {key: value.clone() for key, value in model.state_dict().items()}
    record.moments = plain_moments(model, optimizer)
    return record


def plain_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, as `job.optimizer_state` gives it."""
    result = {}
    for name, param in model.named_parameters():
        if param in optimizer.state:
            held = optimizer.state[param]
            result[name] = {k: v.clone() for k, v in held.items() if isinstance(v, torch.Tensor) and k != "step"}
            if "step" in held:
                result[name]["step"] = int(held["step"])
    return result


def _train_streamed(
    job: ow.Job,
    *,
    steps: int,
    micro_batches: int,
    clip: float | None,
    precision: str,
    loss: Callable | None,
    look: bool,
    backwards: int,
    make_batch: Callable[[int], Any],
) -> Record:
    del precision, loss
    record = Record()
    _seed(SEED)
    for step in range(steps):
        grads: dict[str, torch.Tensor] | None = None
        if backwards == 1 and not (look and step % 2 == 0):
            result = job.step(make_batch(step), micro_batches)
            record.losses.append(result.loss)
            norm = result.grad_norm
        else:
            for turn in range(backwards):
                value = job.backward(make_batch(step * backwards + turn), micro_batches)
            record.losses.append(value)
            if look and step % 2 == 0:
                grads = {name: grad.clone() for name, grad in job.gradients()}
            norm, skipped = job.update()
            assert not skipped
        record.gradients.append(grads)
        if clip is not None:
            assert norm is not None
            record.norms.append(norm)
        assert job.optimizer is not None
        record.learning_rates.append([float(group["lr"]) for group in job.optimizer.param_groups])
    record.random = random_bits()
    record.state = dict(job.state_dict())
    record.moments = streamed_moments(job)
    return record


def streamed_moments(job: ow.Job) -> dict[str, dict[str, Any]]:
    """`job.optimizer_state` of the parameters that have been updated."""
    states = {name: {k: v if k == "step" else v.clone() for k, v in s.items()} for name, s in job.optimizer_state()}
    return {name: state for name, state in states.items() if state["step"]}


def random_bits() -> tuple:
    numpy_state = np.random.get_state()
    return bytes(torch.get_rng_state().numpy()), random.getstate(), numpy_state[1].tobytes(), numpy_state[2]


def compare(plain: Record, streamed: Record) -> None:
    """Equal in every bit, or say where not."""
    for step, (left, right) in enumerate(zip(plain.gradients, streamed.gradients, strict=True)):
        assert plain.losses[step] == streamed.losses[step], f"loss of step {step}"
        if left is not None and right is not None:
            assert left.keys() == right.keys(), f"gradients of step {step}: {left.keys() ^ right.keys()}"
            for name in left:
                same(left[name], right[name], f"gradient of {name} in step {step}")
    assert plain.losses == streamed.losses
    assert plain.norms == streamed.norms
    assert plain.state.keys() == streamed.state.keys()
    for name in plain.state:
        same(plain.state[name], streamed.state[name], name)
    compare_moments(plain.moments, streamed.moments)
    assert plain.random == streamed.random, "the random state differs"
    assert plain.learning_rates == streamed.learning_rates


def compare_moments(plain: dict[str, dict[str, Any]], streamed: dict[str, dict[str, Any]]) -> None:
    stateful = {name for name, held in plain.items() if held}
    assert stateful <= streamed.keys(), stateful - streamed.keys()
    for name in stateful:
        for key, value in plain[name].items():
            other = streamed[name][key]
            if key == "step":
                assert value == other, f"update count of {name}: {value} against {other}"
            else:
                same(value, other, f"{key} of {name}")


def same(left: torch.Tensor, right: torch.Tensor, what: str) -> None:
    assert left.dtype == right.dtype, f"{what}: {left.dtype} against {right.dtype}"
    assert left.shape == right.shape, f"{what}: {left.shape} against {right.shape}"
    equal = torch.equal(left, right) or (
        left.is_floating_point() and torch.equal(left.isnan(), right.isnan())
        and torch.equal(left.nan_to_num(), right.nan_to_num())
    )  # fmt: skip
    if not equal:
        different = int((left != right).sum())
        most = float((left.double() - right.double()).abs().max())
        raise AssertionError(f"{what}: {different} of {left.numel()} elements differ, by up to {most}")
