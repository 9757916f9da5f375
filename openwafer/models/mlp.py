"""The position-wise part of a layer: two linear layers with an activation between, or three with a gate.

Source of the gated ones: Shazeer, arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from openwafer.models.config import GATED, Activation, DecoderConfig
from openwafer.models.initializer import Linear

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "reglu": F.relu,
}
"""What is applied to the projection up, or to the gate where there is one."""


class MLP(nn.Module):
    """down(activation(up(x))), or down(up(x) * activation(gate(x)))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear("mlp.up", config.hidden_size, config.ffn_size, config, bias=config.mlp_bias)
        self.gate = None
        if config.activation in GATED:
            self.gate = Linear("mlp.gate", config.hidden_size, config.ffn_size, config, bias=config.mlp_bias)
        self.down = Linear("mlp.down", config.ffn_size, config.hidden_size, config, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., hidden_size]."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.up(x) * self.activation(self.gate(x)))
