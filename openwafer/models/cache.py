"""Key/value cache for generation: one growing sequence per row of the batch, all of one length.

Not a serving cache: no blocks, no eviction, no rows of different lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer, [B, num_heads, length, head_dim], in a buffer that doubles."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, num_heads, T, head_dim]; returns all so far (views into the buffer)."""
        end = self.length + keys.shape[2]
        self._keys = self._appended(self._keys, keys, end)
        self._values = self._appended(self._values, values, end)
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _appended(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        if buffer is None or buffer.shape[2] < end:
            batch, heads, _, dim = new.shape
            grown = torch.empty(batch, heads, max(end, 2 * self.length), dim, dtype=new.dtype, device=new.device)
            if buffer is not None:
                grown[:, :, : self.length] = buffer[:, :, : self.length]
            buffer = grown
        buffer[:, :, self.length : end] = new
        return buffer


class KVCache:
    """The caches of all layers of a decoder, made as they are asked for."""

    def __init__(self) -> None:
        self._layers: dict[int, LayerCache] = {}

    def layer(self, index: int) -> LayerCache:
        """The cache of layer `index`."""
        return self._layers.setdefault(index, LayerCache())

    @property
    def length(self) -> int:
        """Tokens held; while a forward pass is under way, those before it."""
        return min((layer.length for layer in self._layers.values()), default=0)
