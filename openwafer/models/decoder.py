"""Pre-LN GPT-2 style decoder, as in Cerebras-GPT: learned positions, biases, exact GELU, tied embeddings.

An ordinary single-device torch module: it knows nothing of streaming or parallelism. Its initialiser is the table in
`initializer.py`. Sources: Radford et al. 2019; Dey et al., arXiv 2304.03208; Cerebras-GPT configs on Hugging Face
("activation_function": "gelu", which is the exact one, where GPT-2 itself has the tanh approximation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwafer.base.errors import ConfigError
from openwafer.models.cache import KVCache, LayerCache
from openwafer.models.config import DecoderConfig
from openwafer.models.initializer import Embedding, Linear, distribution_of
from openwafer.models.lm_head import LMHead


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.qkv = Linear("attn.qkv", config.hidden_size, 3 * config.hidden_size, config)
        self.out = Linear("attn.out", config.hidden_size, config.hidden_size, config)

    def forward(self, x: Tensor, past: LayerCache | None = None) -> Tensor:
        """x [B, T, hidden_size] -> [B, T, hidden_size]; with `past`, x follows the tokens it holds."""
        batch, time, width = x.shape
        # [B, T, 3, heads, dim] -> three of [B, heads, T, dim]
        query, key, value = self.qkv(x).view(batch, time, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        before = 0
        if past is not None:
            before = past.length
            key, value = past.extend(key, value)
        mask = None
        if before and time > 1:
            mask = torch.ones(time, before + time, dtype=torch.bool, device=x.device).tril(before)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=before == 0,
        )
        return self.out(attended.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.up = Linear("mlp.up", config.hidden_size, config.ffn_size, config)
        self.down = Linear("mlp.down", config.ffn_size, config.hidden_size, config)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., hidden_size]."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One decoder layer: attention, then MLP, each on a normalised copy, added to the residual stream."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: LayerCache | None = None) -> Tensor:
        """x [B, T, hidden_size] -> [B, T, hidden_size]."""
        x = x + self.dropout(self.attn(self.ln_1(x), past))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class Decoder(nn.Module):
    """Decoder-only language model."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.wte = Embedding("wte", config.vocab_size, config.hidden_size, config)
        self.wpe = Embedding("wpe", config.max_positions, config.hidden_size, config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
    ) -> Tensor:
        """Loss with labels, logits without.

        Args:
            input_ids: [B, T] integers in [0, vocab_size).
            labels: [B, T], the target *at* each position (already shifted), -100 where there is none.
            past: cache of the tokens before input_ids; it is extended in place.
            logits_to_keep: only the logits of the last so many positions; None for all.
            reduction: of the loss: "mean" over the valid tokens, or "sum".

        Returns:
            Scalar loss in fp32, or logits [B, T or logits_to_keep, vocab_size].

        Raises:
            ConfigError: more positions than the model has, or labels of another shape.
        """
        before = past.length if past is not None else 0
        end = before + input_ids.shape[1]
        if end > self.config.max_positions:
            raise ConfigError(
                f"the sequence has {end} tokens; this model has {self.config.max_positions} positions: "
                "shorten it, or build the model with a larger max_positions"
            )
        x = self.wte(input_ids) + self.wpe(torch.arange(before, end, device=input_ids.device))
        x = self.dropout(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, None if past is None else past.layer(index))
        if labels is None and logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        return self.lm_head(self.ln_f(x), labels, reduction)
