"""The decoder's initialiser: a table of parameters and distributions, and leaf modules that obey it.

Every leaf draws its own parameters when it is built and again in `reset_parameters()`, the PyTorch convention, in
the order of registration. So a decoder built part by part, or on the meta device and reset leaf by leaf, has the
same initial bits as one built whole under the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from openwafer.models.config import DecoderConfig

_PART = 1 << 18
"""Elements drawn at a time: 1 MiB, stays in the cache. Part of the result: another value gives other bits."""


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal of mean 0, cut at two standard deviations (of the uncut one). Source: ModelZoo `truncated_normal`."""

    std: float

    @torch.no_grad()
    def fill_(self, parameter: Tensor) -> None:
        """Fill in place, by the inverse of the distribution function, a part at a time.

        nn.init.trunc_normal_ takes 13 times as long and three copies of the parameter (50257 x 768: 2.5 s against
        0.19 s, 2 cores of an AMD EPYC, torch 2.13, 2026-11), which would not fit where models stream.
        """
        if parameter.is_meta:
            return
        inside = math.erf(2 / math.sqrt(2))
        for part in parameter.view(-1).split(_PART):
            draw = torch.empty_like(part, dtype=torch.float32).uniform_(-inside, inside)
            part.copy_(draw.erfinv_().mul_(self.std * math.sqrt(2)).clamp_(-2 * self.std, 2 * self.std))


@dataclass(frozen=True)
class Constant:
    """Every element has one value."""

    value: float

    def fill_(self, parameter: Tensor) -> None:
        nn.init.constant_(parameter, self.value)


Distribution = TruncatedNormal | Constant


@dataclass(frozen=True)
class Row:
    """Parameters whose name matches `pattern` (as in fnmatch) follow `distribution(config)`."""

    pattern: str
    distribution: Callable[[DecoderConfig], Distribution]
    source: str


TABLE: tuple[Row, ...] = (
    Row("*ln_?.weight", lambda c: Constant(1.0), "Ba et al., arXiv 1607.06450, section 3.1"),
    Row("*.bias", lambda c: Constant(0.0), "Radford et al. 2019, released GPT-2 code"),
    Row("wte.weight", lambda c: TruncatedNormal(c.embedding_init_std), "ModelZoo `embedding_initializer`"),
    Row("wpe.weight", lambda c: TruncatedNormal(c.embedding_init_std), "ModelZoo `embedding_initializer`"),
    Row("lm_head.weight", lambda c: TruncatedNormal(c.init_std), "as wte; only when not tied to it"),
    Row("*attn.qkv.weight", lambda c: TruncatedNormal(c.hidden_init_std), "ModelZoo `initializer`"),
    Row("*mlp.up.weight", lambda c: TruncatedNormal(c.hidden_init_std), "ModelZoo `initializer`"),
    Row("*mlp.gate.weight", lambda c: TruncatedNormal(c.hidden_init_std), "ModelZoo `initializer`"),
    Row("*mlp.router.weight", lambda c: TruncatedNormal(c.init_std), "ModelZoo `gate_initializer`"),
    Row("*attn.out.weight", lambda c: TruncatedNormal(c.output_init_std), "Radford et al. 2019, section 2.3"),
    # ModelZoo 2.10 under muP starts from `initializer_range` here unless `ffn_output_layer_initializer` is set. Chosen:
    # the deviation that the config names for the layer's other output, as its configs before 2.3 do for both.
    Row("*mlp.down.weight", lambda c: TruncatedNormal(c.ffn_output_init_std), "Radford et al. 2019, section 2.3"),
)
"""First match wins."""


def distribution_of(name: str, config: DecoderConfig) -> Distribution:
    """The distribution of the decoder's parameter `name`."""
    for row in TABLE:
        if fnmatchcase(name, row.pattern):
            return row.distribution(config)
    raise AssertionError(f"parameter {name} is in no row of the initialiser's table")


class Linear(nn.Linear):
    """nn.Linear whose weight and bias follow the table's rows for `name`."""

    def __init__(self, name: str, in_features: int, out_features: int, config: DecoderConfig, bias: bool = True):
        self._init = {part: distribution_of(f"{name}.{part}", config) for part in ("weight", "bias")}
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        self._init["weight"].fill_(self.weight)
        if self.bias is not None:
            self._init["bias"].fill_(self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding whose weight follows the table's row for `name`."""

    def __init__(self, name: str, num_embeddings: int, embedding_dim: int, config: DecoderConfig):
        self._init = distribution_of(f"{name}.weight", config)
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        self._init.fill_(self.weight)
