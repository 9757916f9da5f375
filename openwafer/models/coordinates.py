"""The coordinate check of muP: how large activations are, and how much they move in training, against the width.

Under muP both are the same at every width; under the standard parametrisation the movement grows with it, which is why
its best learning rate does not carry over. Source: Yang et al., arXiv 2203.03466, section D.1 (figure 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwafer.models.config import DecoderConfig
from openwafer.models.decoder import Decoder
from openwafer.models.mup import learning_rate_scale


def coordinate_check(
    config: DecoderConfig, ids: Tensor, lr: float, num_steps: int, seed: int = 0
) -> dict[str, list[float]]:
    """Train a decoder for a few steps of Adam on one batch and measure after each.

    Args:
        ids: [B, T] tokens.
        lr: before the factors of muP.

    Returns:
        For "embeddings", "last layer" and "logits": the root mean square of what they have moved since the beginning,
        after each step.
    """
    torch.manual_seed(seed)
    model = Decoder(config)
    groups = [
        {"params": [parameter], "lr": lr * learning_rate_scale(name, config)}
        for name, parameter in model.named_parameters()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    first = _activations(model, ids)
    moved: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        for name, value in _activations(model, ids).items():
            moved[name].append((value - first[name]).square().mean().sqrt().item())
    return moved


def growth(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """The exponent p of size ~ width ** p, by least squares on the logarithms; 0 is flat."""
    x, y = torch.tensor(widths).double().log(), torch.tensor(sizes).double().log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


@torch.no_grad()
def _activations(model: Decoder, ids: Tensor) -> dict[str, Tensor]:
    """What the parts of the model give for a batch."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: object, arguments: tuple, result: Tensor) -> None:
            seen[name] = result

        return hook

    parts = {"embeddings": model.dropout, "last layer": model.layers[-1], "logits": model.lm_head}
    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen
