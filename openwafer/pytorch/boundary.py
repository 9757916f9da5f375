"""The state of a run between two steps, besides its pages: JSON, and the model's buffers as raw bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from openwafer.base.errors import ConfigError, StoreError


@dataclass
class Boundary:
    """The state besides the pages between two steps: JSON, and the buffers if they are to be written."""

    state: dict[str, Any]
    buffers: bytes | None
    buffers_sum: int


def json_copy(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed job will find of `extra`: the caller may go on changing its own."""
    try:
        return json.loads(json.dumps(extra))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"extra must be JSON (numbers, strings, lists, dicts with string keys): {error}") from error


def like(now: Any, saved: Any) -> Any:
    """A value that went through JSON, of the type it has in a new optimizer or scheduler."""
    if isinstance(now, torch.Tensor) and isinstance(saved, (bool, int, float)):
        return torch.full_like(now, saved)
    if isinstance(now, Mapping) and isinstance(saved, dict):
        keys = {str(key): key for key in now}
        items = {keys.get(key, key): like(now.get(keys.get(key, key)), value) for key, value in saved.items()}
        return type(now)(items)  # type: ignore[call-arg]
    if isinstance(now, (list, tuple)) and isinstance(saved, list):
        if len(now) == len(saved):
            saved = [like(a, b) for a, b in zip(now, saved, strict=True)]
        return type(now)(saved)
    return saved


def plain(value: Any) -> Any:
    """Hyperparameters as JSON: tensors of one element become numbers, tuples lists."""
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not callable(v)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value if not callable(v)]
    return value


def capture_buffers(tensors: Sequence[torch.Tensor], last_sum: int | None) -> tuple[bytes | None, int]:
    """The buffers as raw bytes, or None if they are what they were; and their checksum."""
    views = [t.cpu().contiguous().view(-1).view(torch.uint8).numpy().data for t in tensors if t.numel()]
    digest = xxhash.xxh3_64()
    for view in views:
        digest.update(view)
    return (None if digest.intdigest() == last_sum else b"".join(views)), digest.intdigest()


def put_buffers(tensors: Sequence[torch.Tensor], raw: bytes | None) -> None:
    """Fill buffers from raw bytes.

    Raises:
        StoreError: they belong to another model.
    """
    if raw is None:
        return
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if expected != len(raw):
        raise StoreError(f"the store holds {len(raw)} bytes of buffers, this model has {expected}: another model?")
    offset = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size:
            part = torch.frombuffer(bytearray(raw[offset : offset + size]), dtype=tensor.dtype)
            tensor.copy_(part.view(tensor.shape))
        offset += size
