"""Computing on a CUDA device, against a plain loop on it whose optimizer computes on the CPU, bit for bit."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import openwafer as ow
from openwafer.streaming.files import Buffer
from openwafer.streaming.link import StreamLink, open_link
from tests.pytorch.conftest import cut
from tests.pytorch.test_exact import CASES, Block, Regression

pytestmark = pytest.mark.gpu
CHOSEN = "tied tied-functional frozen batch-norm buffers dropout u-net shared class-token experts".split()


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def link() -> StreamLink:
    found = open_link("cuda")
    assert isinstance(found, StreamLink)
    return found


def plain(
    model: nn.Module, make_batch: Callable[[int], Any], steps: int, count: int, clip: float | None, precision: str
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses, and the state afterwards."""
    host = [param.detach().clone().requires_grad_(param.requires_grad) for param in model.parameters()]
    optimizer = torch.optim.AdamW([p for p in host if p.requires_grad], lr=1e-2, weight_decay=0.1)
    model = copy.deepcopy(model).cuda()
    losses = []
    for step in range(steps):
        total = torch.zeros((), device="cuda")
        for part in cut(make_batch(step), count):
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = model(*(tensor.cuda() for tensor in part)) / count
            loss.backward()
            total += loss.detach()
        losses.append(float(total))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for here, there in zip(host, model.parameters(), strict=True):
            here.grad = None if there.grad is None else there.grad.cpu()
            there.grad = None
        optimizer.step()
        for here, there in zip(host, model.parameters(), strict=True):
            there.data.copy_(here.data)
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("window", [0, None])
@pytest.mark.parametrize(("count", "clip", "precision"), [(1, None, "fp32"), (4, 0.5, "fp32"), (2, 0.5, "bf16")])
@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("name", CHOSEN)
def test_equals_plain(
    name: str, tier: str, count: int, clip: float | None, precision: str, window: int | None, tmp_path: Path
) -> None:
    make_model, make_batch, _ = CASES[name]
    torch.manual_seed(1)
    model = make_model()
    torch.manual_seed(2)
    losses, state = plain(model, make_batch, 4, count, clip, precision)
    torch.manual_seed(2)
    with ow.compile(
        model,
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1),
        store=tmp_path / "store" if tier == "disk" else None,
        precision=precision,
        clip_norm=clip,
        keep="none",
        device="cuda",
        optimizer_device="host",
    ) as job:
        job._front.pool_bytes = window
        assert [job.step(make_batch(step), count).loss for step in range(4)] == losses
        streamed = job.state_dict()
    for key, value in state.items():
        assert torch.equal(value, streamed[key]), key


def test_copies_run_beside_the_computation() -> None:
    """While the device is busy with something long, copies both ways come to their end."""
    found = link()
    buffer = Buffer(1 << 24)
    found.pin(buffer)
    there = torch.empty(buffer.num_bytes, dtype=torch.uint8, device="cuda")
    there.fill_(7)
    before = found.mark()
    torch.cuda._sleep(1 << 31)
    busy = found.mark()
    found.upload(there, buffer.tensor, before).synchronize()
    assert not busy.query()
    found.synchronize()
    source = torch.full((1 << 24,), 7, dtype=torch.uint8, device="cuda")
    event = found.download([(buffer.tensor, source)])
    torch.cuda._sleep(1 << 31)
    busy = found.mark()
    event.synchronize()
    assert not busy.query()
    assert bool((buffer.tensor == 7).all())


def test_memory_is_pinned() -> None:
    buffer = Buffer(3 << 20)
    link().pin(buffer)
    assert buffer.tensor.is_pinned()


def test_the_peak_is_what_was_predicted() -> None:
    model = Regression(*(Block(2048) for _ in range(12)), nn.Linear(2048, 4))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    batch = torch.randn(4096, 2048), torch.randn(4096, 4)
    with ow.compile(
        model,
        optimizer=torch.optim.AdamW(model.parameters()),
        precision="bf16",
        device="cuda",
        device_memory="1200MiB",
    ) as job:
        for _ in range(3):
            job.step(batch, 2)
        predicted = job.planner.device_plan
    assert predicted is not None
    measured = torch.cuda.max_memory_reserved() - before
    assert measured <= 1200 << 20
    assert predicted.peak_bytes * 0.7 <= measured <= predicted.peak_bytes * 1.1


def test_updates_on_the_device_are_those_of_plain_cuda() -> None:
    torch.manual_seed(1)
    make_model, make_batch, _ = CASES["layers"]
    model = make_model()
    other = copy.deepcopy(model).cuda()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    for step in range(3):
        other(*(tensor.cuda() for tensor in make_batch(step))).backward()
        optimizer.step()
        optimizer.zero_grad()
    ours = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with ow.compile(model, optimizer=ours, precision="fp32", device="cuda", optimizer_device="device") as job:
        for step in range(3):
            job.step(make_batch(step))
        state = job.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value.cpu(), state[name]), name
