"""A shuffle that is a formula: item i of the shuffled order, in O(1) time and memory, from a key alone.

A Feistel network permutes the 2^(2k) numbers around the size; what falls outside is sent through again until it falls
inside (cycle walking: Black and Rogaway, CT-RSA 2002), which keeps it a permutation. Not for cryptography.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_ROUNDS = 8


class Permutation:
    """A permutation of range(size) fixed by integer keys.

    Args:
        size: number of items, at least 1, at most 2**64.
        keys: any integers, for instance (seed, epoch); other keys, another order.
    """

    def __init__(self, size: int, *keys: int):
        assert 1 <= size <= 1 << 64, size
        self.size = size
        self._half_bits = ((size - 1).bit_length() + 1) // 2
        state = 0
        for key in keys:
            state = _mix(state ^ _mix(key & _MASK))
        self._round_keys = [_mix(state + number) for number in range(1, _ROUNDS + 1)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        """The item at place `index` of the order; index in range(size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside range({self.size})")
        index = self._feistel(index)
        while index >= self.size:
            index = self._feistel(index)
        return index

    def _feistel(self, value: int) -> int:
        bits, mask = self._half_bits, (1 << self._half_bits) - 1
        left, right = value >> bits, value & mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << bits | right


def _mix(value: int) -> int:
    """The SplitMix64 step: 64 bits in, 64 well-mixed bits out. Source: Steele et al., OOPSLA 2014, figure 17."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
