"""Attention with linear biases: a score falls by `slope * distance`, a fixed slope for each head.

Source: Press et al., arXiv 2108.12409, section 3; where heads are no power of two, the slopes of the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openwafer.models.config import Alibi


def alibi_slopes(alibi: Alibi, num_heads: int, length: int, device: torch.device) -> Tensor:
    """How much a score falls with each token of distance, for each head [num_heads], fp32.

    Args:
        length: tokens in the longest sequence so far; beyond `train_positions` distances are squeezed.
    """
    factor = alibi.factor
    if alibi.train_positions is not None:
        factor *= max(1.0, length / alibi.train_positions)
    return torch.tensor(_slopes(num_heads), dtype=torch.float32, device=device) / factor


def _slopes(num_heads: int) -> list[float]:
    """Powers of 2 ** (-8 / n); between two powers of two, every other slope of the larger one fills up."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if power == num_heads:
        return slopes
    return slopes + _slopes(2 * power)[::2][: num_heads - power]
