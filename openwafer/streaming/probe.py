"""Measures this machine for about a second: matrix products, the disk under a folder, the optimizer."""

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

FILE_BYTES = 128 << 20
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second; disk rates with reads and writes side by side."""

    flops_s: float
    moved_bytes_s: float
    read_bytes_s: float
    write_bytes_s: float
    update_params_s: float


def probe(folder: Path | None, dtype: torch.dtype) -> Rates:
    """Measure; the disk under `folder` if there is one."""
    read, write = (float("inf"), float("inf")) if folder is None else probe_disk(folder)
    return Rates(probe_products(dtype), probe_elementwise(dtype), read, write, probe_update())


@functools.cache
def probe_products(dtype: torch.dtype) -> float:
    """Floating point operations a second in matrix products of a layer's size."""
    left, right = torch.randn(512, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2 * 512 * 2048 * 2048 / _seconds(lambda: torch.mm(left, right))


@functools.cache
def probe_elementwise(dtype: torch.dtype) -> float:
    """Bytes read and written a second by an elementwise operation on tensors that no cache holds."""
    values = torch.randn(1 << 24).to(dtype)
    result = torch.empty_like(values)
    return 2 * values.numel() * values.element_size() / _seconds(lambda: torch.mul(values, 2.0, out=result))


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


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, warmed up."""
    call()
    best = float("inf")
    deadline = time.perf_counter() + 0.25
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
