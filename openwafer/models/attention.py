"""Causal self-attention: grouped heads, rotary or linear-bias positions, a sliding window, packed documents.

The kernel is `torch.nn.functional.scaled_dot_product_attention`. Where plain causal attention is not enough it is
called for blocks of queries, each with the keys that it may see: the work of a window grows with the window, a mask
never has all pairs of positions at once, and the bias of ALiBi takes no memory at all (see `_alibi_mask`).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwafer.models.cache import LayerCache
from openwafer.models.config import DecoderConfig
from openwafer.models.initializer import Linear
from openwafer.models.rotary import rotate

BLOCK_QUERIES = 256
"""Queries that share a mask. Smaller ones skip more keys, larger ones make fewer calls."""


class Where(NamedTuple):
    """What all layers share about the positions of a batch.

    Attributes:
        cos: [B or 1, 1, T, rotary_dim / 2], and sin; None where nothing is rotated.
        slopes: of ALiBi, [num_heads]; None without.
        documents: [B, T] number of the document of each token, which sees only its own; None for one a row.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    slopes: Tensor | None = None
    documents: Tensor | None = None


def document_ids(input_ids: Tensor, end_token: int) -> Tensor:
    """Number of the document of each token of packed rows [B, T]; `end_token` is the last of its document."""
    ends = (input_ids == end_token).long()
    return ends.cumsum(dim=1) - ends


def positions_in(documents: Tensor) -> Tensor:
    """Position of each token in its document, from `document_ids` [B, T]."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.cat((torch.zeros_like(documents[:, :1]), documents[:, 1:] - documents[:, :-1]), dim=1) != 0
    return index - torch.where(starts, index, 0).cummax(dim=1).values


class Attention(nn.Module):
    """Causal self-attention with one fused projection for query, key and value."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.scale = config.score_scale
        self.window = config.window
        self.sink_tokens = config.sink_tokens
        self.dropout = config.dropout
        self.qkv = Linear("attn.qkv", config.hidden_size, sum(self.sizes), config, bias=config.qkv_bias)
        self.out = Linear("attn.out", self.sizes[0], config.hidden_size, config, bias=config.attention_out_bias)

    def forward(self, x: Tensor, past: LayerCache | None = None, where: Where = Where()) -> Tensor:  # noqa: B008
        """x [B, T, hidden_size] -> [B, T, hidden_size]; with `past`, x follows the tokens it holds."""
        batch, time, _ = x.shape
        # [B, T, heads * dim] -> [B, heads, T, dim]
        query, key, value = (
            part.view(batch, time, -1, self.head_dim).transpose(1, 2) for part in self.qkv(x).split(self.sizes, dim=-1)
        )
        if where.cos is not None and where.sin is not None:
            query, key = rotate(query, where.cos, where.sin), rotate(key, where.cos, where.sin)
        if past is not None:
            key, value = past.extend(key, value)
        attended = attend(
            query,
            key,
            value,
            scale=self.scale,
            window=self.window,
            sink_tokens=self.sink_tokens,
            slopes=where.slopes,
            documents=where.documents,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(attended.transpose(1, 2).reshape(batch, time, -1))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sink_tokens: int = 0,
    slopes: Tensor | None = None,
    documents: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention of the last T of S tokens.

    Args:
        query: [B, heads, T, head_dim].
        key: [B, kv_heads, S, head_dim]; value likewise. Heads in order share a key head in groups.
        scale: of query . key.
        window: a query sees the so many last keys, itself included; None for all.
        sink_tokens: and the so many first.
        slopes: [heads], what a token of distance takes from a score.
        documents: [B, S], a query sees keys of its own number only.

    Returns:
        [B, heads, T, head_dim].
    """
    time, total = query.shape[2], key.shape[2]
    before = total - time
    grouped = query.shape[1] != key.shape[1]
    if window is not None and window >= total:
        window = None
    if slopes is None and documents is None and window is None and (before == 0 or time == 1):
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=before == 0, scale=scale, enable_gqa=grouped
        )
    parts = []
    for start in range(0, time, BLOCK_QUERIES):
        end = min(time, start + BLOCK_QUERIES)
        last = before + end
        first = 0 if window is None or sink_tokens else max(0, before + start - window + 1)
        queries, keys = (before + start, last), (first, last)
        flipped = False
        if slopes is None:
            mask = _visible(queries, keys, window, sink_tokens, documents, query.device)
        elif documents is None and not sink_tokens:
            mask, flipped = _alibi_mask(slopes, queries, keys, window), True
        else:
            seen = _visible(queries, keys, window, sink_tokens, documents, query.device)
            mask = _alibi_mask(slopes, queries, keys, None).flip(2).masked_fill(~seen, float("-inf"))
        block = query[:, :, start:end]
        attended = _masked(
            block.flip(2) if flipped else block,
            key[:, :, first:last],
            value[:, :, first:last],
            mask,
            dropout,
            scale,
            grouped,
        )
        parts.append(attended.flip(2) if flipped else attended)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scale: float, grouped: bool
) -> Tensor:
    device = query.device.type
    if mask.dtype == torch.bool:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, enable_gqa=grouped)
    # A CPU's kernel takes the bias in fp32, which autocast would round; other devices want one dtype, laid out whole.
    has_autocast = torch.amp.is_autocast_available(device)
    if has_autocast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if device != "cpu":
        mask = mask.to(query.dtype).contiguous()
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, enable_gqa=grouped)


def _visible(
    queries: tuple[int, int],
    keys: tuple[int, int],
    window: int | None,
    sink_tokens: int,
    documents: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which key a query may see: [queries, keys], or [B, 1, queries, keys] with documents. Ranges are [first, end)."""
    row = torch.arange(*queries, device=device)[:, None]
    column = torch.arange(*keys, device=device)[None, :]
    seen = column <= row
    if window is not None:
        seen &= (column > row - window) | (column < sink_tokens)
    if documents is None:
        return seen
    own = documents[:, slice(*queries), None] == documents[:, None, slice(*keys)]
    return (seen & own)[:, None]


def _alibi_mask(slopes: Tensor, queries: tuple[int, int], keys: tuple[int, int], window: int | None) -> Tensor:
    """Bias of every key [1, heads, queries, keys], with the queries in reverse order.

    A bias depends on the distance alone. With one of the two orders reversed, a step along either dimension is a step
    along the vector of distances, so that the mask is a view of that vector and takes no memory.
    """
    num_rows, num_columns = queries[1] - queries[0], keys[1] - keys[0]
    furthest = queries[1] - 1 - keys[0]
    ahead = torch.arange(num_rows + num_columns - 1, device=slopes.device) - furthest  # key minus query
    hidden = ahead > 0
    if window is not None:
        hidden |= ahead <= -window
    bias = (slopes[:, None] * ahead).masked_fill(hidden, float("-inf"))
    return bias.as_strided((1, len(slopes), num_rows, num_columns), (0, bias.shape[1], 1, 1))
