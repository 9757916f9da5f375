"""Masks of which weights exist: pure functions of scores, no state.

A mask is a bool tensor of the parameter's shape. Counts are rounded down, in every group apart where `groups` balances
them. Source: documentation of `cerebras_pytorch` 2.10, `sparse`; RigL: Evci et al., arXiv 1911.11134.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwafer.base.errors import ConfigError


@dataclass(frozen=True)
class Groups:
    """Balance: every one of `count` groups of output (rows) or input (columns) channels keeps equally many weights."""

    axis: Literal["out", "in"]
    count: int

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ConfigError if a parameter of this shape has no such groups."""
        size = shape[0] if self.axis == "out" else shape[-1]
        if len(shape) != 2 or size % self.count:
            raise ConfigError(
                f"{name} of shape {list(shape)} has no {self.count} equal groups of {self.axis}put channels: leave "
                f"balance_{self.axis}_groups out, or choose a divisor of {size}"
            )


def _rows(score: Tensor, groups: Groups | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Scores [groups, n], and the way back to their shape."""
    shape = score.shape
    if groups is None:
        return score.reshape(1, -1), lambda rows: rows.view(shape)
    if groups.axis == "out":
        return score.reshape(groups.count, -1), lambda rows: rows.view(shape)
    turned = score.t().contiguous()
    return turned.view(groups.count, -1), lambda rows: rows.view(turned.shape).t().contiguous()


def _highest(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(rows, dtype=torch.bool)
    return mask.scatter_(-1, rows.topk(count, dim=-1).indices, True) if count > 0 else mask


def keep_highest(score: Tensor, sparsity: float, groups: Groups | None = None) -> Tensor:
    """The mask of the (1 - sparsity) highest scores."""
    rows, back = _rows(score, groups)
    return back(_highest(rows, _count(1 - sparsity, rows.shape[-1])))


def drop_lowest(score: Tensor, mask: Tensor, fraction: float, groups: Groups | None = None) -> Tensor:
    """`mask` without the `fraction` of its weights that have the lowest scores."""
    rows, back = _rows(score.masked_fill(~mask, -math.inf), groups)
    held = int(mask.sum()) / rows.shape[0]
    return back(_highest(rows, _count(1 - fraction, held))) & mask


def grow_highest(score: Tensor, mask: Tensor, sparsity: float, groups: Groups | None = None) -> Tensor:
    """`mask` with as many of the highest scores outside it as bring it to (1 - sparsity); never smaller."""
    rows, back = _rows(score.masked_fill(mask, -math.inf), groups)
    held = int(mask.sum()) // rows.shape[0]
    wanted = _count(1 - sparsity, rows.shape[-1]) - held
    return mask | back(_highest(rows, max(0, wanted)))


def checkerboard(shape: tuple[int, ...], sparsity: float) -> Tensor:
    """Evenly spaced weights, each row shifted against the one before."""
    density, width = 1 - sparsity, shape[-1]
    # 1e-5 keeps what should be whole from being rounded to the number below.
    padding = math.ceil(width / density + 1e-5)
    steps = torch.floor(torch.arange(width + padding) * density + 1e-5)
    row = steps[1:] != steps[:-1]
    if len(shape) == 1:
        return row[:width].clone()
    offset = -math.floor(1 / density - 1e-5)
    rows = torch.stack([torch.roll(row, number * offset)[:width] for number in range(shape[-2])])
    return rows.expand(shape).contiguous()


def _count(density: float, total: float) -> int:
    """Weights that exist of `total`: rounded down, in single precision as the source has it."""
    return int(torch.tensor(density, dtype=torch.float32) * total)
