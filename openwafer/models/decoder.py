"""Decoder-only language model of composed parts, chosen by its `DecoderConfig`.

Cerebras-GPT (learned positions, LayerNorm, biases, exact GELU, tied embeddings), BTLM and Jais (ALiBi, SwiGLU, muP),
Llama and Mistral (rotary positions, RMSNorm, SwiGLU, grouped heads, window) and Mixtral (experts) are one module. An
ordinary single-device torch module: it knows nothing of streaming or parallelism. Its initialiser is the table in
`initializer.py`; the sources of each family are in `families.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openwafer.base.errors import ConfigError
from openwafer.models.alibi import alibi_slopes
from openwafer.models.attention import Attention, Where, positions_in
from openwafer.models.cache import KVCache, LayerCache
from openwafer.models.config import Alibi, DecoderConfig, Learned, Rotary
from openwafer.models.experts import MixtureOfExperts, balance_coefficient, balance_loss
from openwafer.models.initializer import Embedding, distribution_of
from openwafer.models.lm_head import IGNORE_INDEX, LMHead
from openwafer.models.mlp import MLP
from openwafer.models.rotary import rotary_angles


def make_norm(config: DecoderConfig) -> nn.Module:
    """LayerNorm with bias, or RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.layer_norm_eps)


class Block(nn.Module):
    """One decoder layer: attention, then MLP or experts, each on a normalised copy, added to the residual stream."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config) if config.experts is None else MixtureOfExperts(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        past: LayerCache | None = None,
        where: Where = Where(),  # noqa: B008
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x [B, T, hidden_size] -> the same; with experts also what `balance_loss` needs of them."""
        x = x + self.dropout(self.attn(self.ln_1(x), past, where))
        change = self.mlp(self.ln_2(x))
        if isinstance(change, tuple):
            return x + self.dropout(change[0]), change[1]
        return x + self.dropout(change)


class Decoder(nn.Module):
    """Decoder-only language model."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.wte = Embedding("wte", config.vocab_size, config.hidden_size, config)
        self.wpe = None
        if isinstance(config.positions, Learned):
            self.wpe = Embedding("wpe", config.max_positions, config.hidden_size, config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = make_norm(config)
        tied = self.wte.weight if config.tie_embeddings else None
        self.lm_head = LMHead(
            config.hidden_size, config.vocab_size, tied, init=distribution_of("lm_head.weight", config)
        )

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        past: KVCache | None = None,
        logits_to_keep: int | None = None,
        reduction: str = "mean",
        documents: Tensor | None = None,
    ) -> Tensor:
        """Loss with labels, logits without.

        Args:
            input_ids: [B, T] integers in [0, vocab_size).
            labels: [B, T], the target *at* each position (already shifted), -100 where there is none.
            past: cache of the tokens before input_ids; it is extended in place.
            logits_to_keep: only the logits of the last so many positions; None for all.
            reduction: of the loss: "mean" over the valid tokens, or "sum".
            documents: [B, T], for rows in which several documents are packed: the number of each token's document
                (see `document_ids`), never falling. A token sees its own document only, which begins at position 0.

        Returns:
            Scalar loss in fp32, with the load-balancing loss of experts in it, or logits
            [B, T or logits_to_keep, vocab_size].

        Raises:
            ConfigError: more positions than the model has, labels or documents of another shape, or both past and
                documents.
        """
        before = past.length if past is not None else 0
        end = before + input_ids.shape[1]
        self._check(input_ids, end, documents, past)
        if documents is None:
            positions = torch.arange(before, end, device=input_ids.device)
        else:
            positions = positions_in(documents)
        where = self._where(positions, end, documents)
        x = self.wte(input_ids)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        if self.config.embeddings_scale != 1.0:
            x = x * self.config.embeddings_scale
        x = self.dropout(x)
        routing = []
        for index, layer in enumerate(self.layers):
            x = layer(x, None if past is None else past.layer(index), where)
            if isinstance(x, tuple):
                x, routed = x
                routing.append(routed)
        if labels is None and logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        x = self.ln_f(x)
        if self.config.logits_scale != 1.0:
            x = x * self.config.logits_scale
        result = self.lm_head(x, labels, reduction)
        coefficient = balance_coefficient(self.config.experts)
        if labels is None or not coefficient:
            return result
        count = (labels != IGNORE_INDEX).sum() if reduction == "sum" else 1.0
        return result + coefficient * count * balance_loss(routing)

    def _where(self, positions: Tensor, length: int, documents: Tensor | None) -> Where:
        config = self.config
        if isinstance(config.positions, Rotary):
            cos, sin = rotary_angles(config.positions, config.rotary_dim, positions, length, config.max_positions)
            shape = (-1, 1, *cos.shape[-2:])
            return Where(cos=cos.view(shape), sin=sin.view(shape), documents=documents)
        if isinstance(config.positions, Alibi):
            slopes = alibi_slopes(config.positions, config.num_heads, length, positions.device)
            return Where(slopes=slopes, documents=documents)
        return Where(documents=documents)

    def _check(self, input_ids: Tensor, end: int, documents: Tensor | None, past: KVCache | None) -> None:
        limit = self.config.position_limit
        if limit is not None and end > limit:
            raise ConfigError(
                f"the sequence has {end} tokens; this model has {limit} positions: "
                "shorten it, or build the model with a larger max_positions"
            )
        if documents is None:
            return
        if documents.shape != input_ids.shape:
            raise ConfigError(
                f"documents have shape {list(documents.shape)}; they must have that of input_ids, "
                f"{list(input_ids.shape)}"
            )
        if past is not None:
            raise ConfigError("documents are for packed rows in training; they cannot be given together with past")
