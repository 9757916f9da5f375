"""Measures this machine for about a second: matrix products, the disk or the link to a device, the optimizer."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from openwafer.base.errors import StoreError
from openwafer.streaming.files import Buffer, FileLayer, IOEngine, PageFile
from openwafer.streaming.link import Link
from openwafer.streaming.update import OptimizerSpec, snapshot

CPU = torch.device("cpu")
FILE_BYTES = 128 << 20
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second; bytes are those of the disk, or of the link to a device."""

    flops_s: float
    moved_bytes_s: float
    read_bytes_s: float
    write_bytes_s: float
    update_params_s: float


def probe(folder: Path | None, dtype: torch.dtype) -> Rates:
    """Measure; the disk under `folder` if there is one."""
    read, write = (float("inf"), float("inf")) if folder is None else probe_disk(folder)
    return Rates(probe_products(dtype), probe_elementwise(dtype), read, write, probe_update())


def probe_device(link: Link, dtype: torch.dtype) -> Rates:
    """Measure a device: copies to it are reads, copies from it writes."""
    up, down = probe_link(link)
    return Rates(
        probe_products(dtype, link.device), probe_elementwise(dtype, link.device), up, down, probe_update_over(link)
    )


@functools.cache
def probe_products(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Floating point operations a second in matrix products of a layer's size."""
    left, right = _numbers(512, 2048, device=device).to(dtype), _numbers(2048, 2048, device=device).to(dtype)
    return 2 * 512 * 2048 * 2048 / _seconds(lambda: torch.mm(left, right), device)


@functools.cache
def probe_elementwise(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Bytes read and written a second by an elementwise operation on tensors that no cache holds."""
    values = _numbers(1 << 24, device=device).to(dtype)
    result = torch.empty_like(values)
    return 2 * values.numel() * values.element_size() / _seconds(lambda: torch.mul(values, 2.0, out=result), device)


def _numbers(*shape: int, device: torch.device) -> torch.Tensor:
    """Normal numbers that are drawn from no generator of the caller's."""
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(0), device=device)


@functools.cache
def probe_link(link: Link) -> tuple[float, float]:
    """Bytes a second to a device, and from it."""
    buffer = Buffer(BLOCK_BYTES * 8)
    link.pin(buffer)
    there = torch.empty(buffer.num_bytes, dtype=torch.uint8, device=link.device)
    up = _seconds(lambda: link.upload(there, buffer.tensor, link.mark()).synchronize())
    down = _seconds(lambda: link.download([(buffer.tensor, there)]).synchronize())
    return buffer.num_bytes / up, buffer.num_bytes / down


@functools.cache
def probe_update_over(link: Link) -> float:
    """Parameters a second through fused AdamW in fp32 on a device, with the copies to it and back."""
    count = 1 << 20
    buffers = [Buffer(4 * count) for _ in range(4)]
    for buffer in buffers:
        link.pin(buffer)
    values, grad, first, second = (buffer.view(torch.float32, 0, count) for buffer in buffers)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(values)], fused=True)
    spec, hyper = OptimizerSpec.of(optimizer), snapshot(optimizer.param_groups[0])
    state = {"exp_avg": first, "exp_avg_sq": second}
    return count / _seconds(lambda: link.update(spec, hyper, 1, values, grad, state))


@functools.cache
def probe_update() -> float:
    """Parameters a second through fused AdamW in fp32."""
    param = torch.nn.Parameter(torch.zeros(1 << 21))
    param.grad = torch.ones_like(param)
    optimizer = torch.optim.AdamW([param], fused=True)
    return param.numel() / _seconds(optimizer.step)


def probe_disk(folder: Path) -> tuple[float, float]:
    """Bytes read and written a second, both at the same time, with direct I/O."""
    files = FileLayer()
    io = IOEngine(files)
    path = folder / ".probe"
    try:
        file = PageFile(files, path, FILE_BYTES, create=True)
    except StoreError:
        io.close()
        raise
    buffers = [Buffer(BLOCK_BYTES) for _ in range(4)]
    half = FILE_BYTES // 2
    try:
        for offset in range(0, FILE_BYTES, BLOCK_BYTES):
            io.wait(io.write(file, buffers[0].bytes, offset), "probing the disk")
        started = time.perf_counter()
        waits = []
        for offset in range(0, half, BLOCK_BYTES):
            waits.append(io.read(file, buffers[1].bytes, offset, None))
            waits.append(io.write(file, buffers[2].bytes, half + offset))
        for wait in waits:
            io.wait(wait, "probing the disk")
        seconds = time.perf_counter() - started
    finally:
        io.close()
        file.close()
        os.unlink(path)
    return half / seconds, half / seconds


def _seconds(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of the fastest of a few calls, warmed up."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    call()
    wait()
    best = float("inf")
    deadline = time.perf_counter() + 0.25
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - started)
    return best
