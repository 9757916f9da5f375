"""Mixture of experts: a learned router sends each token to its top-k of several MLPs.

Every expert is a module of its own, so that whoever streams the model can hold one at a time, and is called even
without tokens, so that its gradient is zero rather than missing. Source: Jiang et al., arXiv 2401.04088, section 2.1;
the load-balancing loss: Fedus et al., arXiv 2101.03961, section 2.2. Not done here: capacity limits, other routers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from openwafer.models.config import DecoderConfig, Experts
from openwafer.models.initializer import Linear
from openwafer.models.mlp import MLP


class MixtureOfExperts(nn.Module):
    """A router and its experts, in the place of an MLP."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        assert config.experts is not None
        self.top_k = config.experts.top_k
        self.null_probability = config.experts.null_probability
        self.router = Linear("mlp.router", config.hidden_size, config.experts.num_experts, config, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.experts.num_experts))
        self.shared = nn.ModuleList(MLP(config) for _ in range(config.experts.num_shared))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Args: x [B, T, hidden_size].

        Returns:
            [B, T, hidden_size], and for the load-balancing loss [B, 2, num_experts] in fp32: of each row the tokens
            sent to each expert, as a share, and its mean probability.
        """
        rows = x.reshape(-1, x.shape[-1])
        probabilities = self.router(rows).float().softmax(dim=-1)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + self.null_probability)
        total = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, place = _sent_to(number, chosen, len(self.experts))
            share = expert(rows[token]) * weights[token, place, None]
            total = total.index_add(0, token, share.to(total.dtype))
        for expert in self.shared:
            total = total + expert(rows)
        return total.view_as(x), self._routing(probabilities, chosen, len(x))

    def _routing(self, probabilities: Tensor, chosen: Tensor, batch: int) -> Tensor:
        sent = torch.zeros_like(probabilities).scatter(1, chosen, 1.0)
        by_row = (part.view(batch, -1, part.shape[-1]).mean(dim=1) for part in (sent, probabilities))
        return torch.stack(tuple(by_row), dim=1)


def balance_loss(routing: list[Tensor]) -> Tensor:
    """The load-balancing loss of all layers: num_experts * sum over experts of share * probability.

    Shares and probabilities are means over the layers and over the tokens of a row of the batch; the loss is the mean
    over the rows, as in ModelZoo's LoadBalancingLoss, so that it does not depend on how a batch is cut. It is top_k
    where all is even.

    Args:
        routing: of each layer, [B, 2, num_experts].
    """
    share, probability = torch.stack(routing).mean(dim=0).unbind(dim=1)
    return share.shape[-1] * (share * probability).sum(dim=-1).mean()


def _sent_to(number: int, chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] that an expert gets, and the expert's place [n] among the chosen [tokens, top_k] of each."""
    if not chosen.is_meta and not isinstance(chosen, FakeTensor):
        token, place = (chosen == number).nonzero(as_tuple=True)
        return token, place
    # Without values, only shapes are asked for: as many as it gets where all is even.
    even = torch.arange(-(-chosen.numel() // num_experts), device=chosen.device)
    return even % len(chosen), torch.zeros_like(even)


def balance_coefficient(experts: Experts | None) -> float:
    """Weight of the load-balancing loss; 0 without experts."""
    return 0.0 if experts is None else experts.balance_coefficient
