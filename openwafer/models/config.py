"""Shapes of the decoder, and the Cerebras-GPT family.

Deliberately only what fixes the module: how it is trained (batch, learning rate) belongs to the recipe.
Source of the sizes: Dey et al., "Cerebras-GPT" (arXiv 2304.03208), table 1, and the published ModelZoo configs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openwafer.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape and initialisation of a pre-LN GPT-2 style decoder.

    ffn_size left out is 4 * hidden_size; output_init_std left out is init_std / sqrt(2 * num_layers).

    Raises:
        ConfigError: a size is not positive, or hidden_size is not a multiple of num_heads.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int = None  # pyright: ignore[reportAssignmentType]
    vocab_size: int = 50257
    max_positions: int = 2048
    dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02
    output_init_std: float = None  # pyright: ignore[reportAssignmentType]
    tie_embeddings: bool = True

    def __post_init__(self):
        if self.ffn_size is None:
            object.__setattr__(self, "ffn_size", 4 * self.hidden_size)
        if self.output_init_std is None and self.num_layers > 0:
            object.__setattr__(self, "output_init_std", self.init_std / math.sqrt(2 * self.num_layers))
        for name in ("hidden_size", "num_layers", "num_heads", "ffn_size", "vocab_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "choose sizes that divide"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


CEREBRAS_GPT: dict[str, DecoderConfig] = {
    "111m": DecoderConfig(num_layers=10, hidden_size=768, num_heads=12),
    "256m": DecoderConfig(num_layers=14, hidden_size=1088, num_heads=17),
    "590m": DecoderConfig(num_layers=18, hidden_size=1536, num_heads=12),
    # The published config writes 0.0025, not the family's 0.02 / sqrt(2 * 24) = 0.00289.
    "1.3b": DecoderConfig(num_layers=24, hidden_size=2048, num_heads=16, output_init_std=0.0025),
    "2.7b": DecoderConfig(num_layers=32, hidden_size=2560, num_heads=32),
    "6.7b": DecoderConfig(num_layers=32, hidden_size=4096, num_heads=32),
    "13b": DecoderConfig(num_layers=40, hidden_size=5120, num_heads=40),
}
"""Cerebras-GPT by size. Source: arXiv 2304.03208, table 1; initialisation: ModelZoo configs."""


def num_parameters(config: DecoderConfig) -> int:
    """Trainable parameters of `Decoder(config)`, a tied embedding counted once."""
    d, f = config.hidden_size, config.ffn_size
    embeddings = (config.vocab_size + config.max_positions) * d
    attention = 4 * d * d + 4 * d
    mlp = 2 * d * f + f + d
    norms = 4 * d
    head = 0 if config.tie_embeddings else config.vocab_size * d
    return embeddings + config.num_layers * (attention + mlp + norms) + 2 * d + head
