"""Writes a model's parameters as safetensors, a page at a time, so that a model larger than memory can be saved.

Files and index are laid out as Hugging Face's: `model-00001-of-00003.safetensors` and `model.safetensors.index.json`.
A tied parameter is written once, under its first name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from openwafer.base.errors import ConfigError
from openwafer.streaming.files import store_error

SHARD_BYTES = 256 << 20


def save_tensors(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors into a new folder: all of them, or nothing.

    Raises:
        ConfigError: the folder exists.
        StoreFull, StoreIOError: the file system does not take it.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists: give a folder that does not exist yet, or remove it")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write(tensors, partial, shard_bytes)
        os.rename(partial, folder)
    except OSError as error:
        raise store_error(error, f"saving to {folder}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, int]] = []
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if shard:
            save_file(shard, folder / f"{len(shards):05d}", metadata={"format": "pt"})
            shards.append({name: tensor.numel() * tensor.element_size() for name, tensor in shard.items()})
            shard.clear()

    for name, tensor in tensors:
        held = sum(t.numel() * t.element_size() for t in shard.values())
        if held and held + tensor.numel() * tensor.element_size() > shard_bytes:
            flush()
        shard[name] = tensor.detach().clone()
    flush()
    if len(shards) <= 1:
        if shards:
            os.rename(folder / "00000", folder / "model.safetensors")
        return
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for number, name in enumerate(names):
        os.rename(folder / f"{number:05d}", folder / name)
    index = {
        "metadata": {"total_size": sum(sum(sizes.values()) for sizes in shards)},
        "weight_map": {tensor: name for name, sizes in zip(names, shards, strict=True) for tensor in sizes},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
