"""What a step does with its batch: cut it into micro-batches, weigh them, call the model, find the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from openwafer.base.errors import ConfigError

IGNORED = -100


def split(batch: Any, count: int) -> list[Any]:
    """Cut every tensor whose first dimension is the batch into `count` parts; everything else goes to all parts.

    Raises:
        ConfigError: the batch has no tensor, or fewer samples than parts.
    """
    if count < 1:
        raise ConfigError(f"micro_batches must be at least 1, got {count}")
    if count == 1:
        return [batch]
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes:
        raise ConfigError("the batch holds no tensor with a first dimension: it cannot be cut into micro-batches")
    samples = sizes[0]
    if samples < count:
        raise ConfigError(
            f"a batch of {samples} samples cannot be cut into {count} micro-batches: use at most {samples}"
        )

    def part(index: int) -> Any:
        def cut(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != samples:
                return tensor
            return torch.tensor_split(tensor, count)[index]

        return tree_map_only(torch.Tensor, cut, batch)

    return [part(index) for index in range(count)]


def num_targets(batch: Any) -> int:
    """Valid targets of a batch: entries of `labels` that are not -100; without labels, samples."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return sizes[0] if sizes else 1


def call(model: Callable, batch: Any) -> Any:
    """Call a model with a mapping as keywords, a sequence as positions, anything else as the one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def find_loss(output: Any) -> torch.Tensor:
    """The loss in what a model returned: a scalar, `.loss`, `["loss"]`, or the first of a sequence.

    Raises:
        ConfigError: there is none.
    """
    candidates = [output, getattr(output, "loss", None)]
    if isinstance(output, Mapping):
        candidates.append(output.get("loss"))
    if isinstance(output, Sequence) and len(output):
        candidates.append(output[0])
    for candidate in candidates:
        if isinstance(candidate, torch.Tensor) and candidate.numel() == 1:
            return candidate.reshape(())
    raise ConfigError(
        f"the model returned {type(output).__name__} without a scalar loss. Return the loss, an object with `.loss`, "
        "or pass loss=function(output, batch)"
    )
