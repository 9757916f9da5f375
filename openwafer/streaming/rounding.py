"""Stochastic rounding of fp32 to bf16 by a counter, in plain torch; kernels.c does the same with the same bits.

A value is rounded up in magnitude with the probability that makes the mean exact: 16 random bits are added to its
fp32 bits and the low half is cut off. The random bits are a hash of (seed, step, slot, element), so the
result depends on nothing else: not on chunks, threads or order. Inf and NaN pass through, and a finite value never
becomes infinite (it is truncated instead).

Hash: the 32-bit finalizer "lowbias32" (github.com/skeeto/hash-prospector, public domain), applied once to each half of
the element's index with a key from splitmix64 (Steele, Lea, Flood 2014) of seed, step and slot in between.
"""

import torch
from torch import Tensor

_BLOCK = 1 << 16  # elements; bounds the int64 temporaries
_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def rounding_key(seed: int, step: int, slot: int) -> int:
    """64-bit key of the random stream for one update; slots 2k and 2k+1 share it and use one half-word each."""
    key = _splitmix64(seed & _MASK64)
    key = _splitmix64(key ^ (step & _MASK64))
    return _splitmix64(key ^ (slot // 2))


def round_stochastic(source: Tensor, target: Tensor, *, seed: int, step: int, slot: int, element: int) -> None:
    """Write `source` (fp32) to `target` (bf16, same shape, contiguous), rounded stochastically.

    Args:
        slot: position of the tensor in the state layout.
        element: global index of the first element, in [0, 2**63).
    """
    flat, out = source.reshape(-1), target.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        _round_block(flat[block], out[block], rounding_key(seed, step, slot), slot, element + start)


def _round_block(flat: Tensor, target: Tensor, key: int, slot: int, element: int) -> None:
    noise = (_hash(key, element, flat.numel(), flat.device) >> (16 * (slot % 2))) & 0xFFFF
    bits = flat.view(torch.int32).to(torch.int64) & _MASK32
    rounded = bits + noise
    exponent_full = 0x7F800000
    special = (bits & exponent_full) == exponent_full
    overflow = (rounded & exponent_full) == exponent_full
    rounded = torch.where(special | overflow, bits, rounded) >> 16
    # A NaN whose payload sits in the low half would be cut down to an infinity.
    rounded = torch.where(torch.isnan(flat), rounded | 0x40, rounded)
    target.view(torch.int16).copy_(rounded.to(torch.int16))


def _hash(key: int, element: int, count: int, device: torch.device) -> Tensor:
    """Hash of `count` consecutive indices, each in [0, 2**32), as int64."""
    index = torch.arange(element, element + count, dtype=torch.int64, device=device)
    word = _lowbias32((index & _MASK32) ^ (key & _MASK32))
    return _lowbias32(word ^ (key >> 32) ^ (index >> 32))


def _lowbias32(word: Tensor) -> Tensor:
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _MASK32
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & _MASK32
    return word ^ (word >> 16)


def _splitmix64(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK64
    return word ^ (word >> 31)
