"""Helpers of host scripts: 16-bit data in 32-bit words, timestamps."""

from __future__ import annotations

import numpy as np


def memcpy_view(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """The values in the low bits of 32-bit words: a view that can be written."""
    words = array.view(np.uint32)
    size = np.dtype(dtype).itemsize
    return words.view(dtype) if size == 4 else words.view(dtype)[..., :: 4 // size]


def input_array_to_u32(np_arr: np.ndarray, sentinel: int | None = None, fast_dim_sz: int = 1) -> np.ndarray:
    """16-bit values as words: the value in the low half; with a sentinel, its index in the high half.

    Args:
        np_arr: 16-bit values
        sentinel: None: the high half is 0; else the index goes there
        fast_dim_sz: length of the fast dimension: the index counts from 0 to it
    """
    flat = np_arr.ravel().view(np.uint16).astype(np.uint32)
    if sentinel is None:
        return flat
    index = np.arange(flat.size, dtype=np.uint32) % np.uint32(fast_dim_sz)
    return flat | index << np.uint32(16)


def calculate_cycles(timestamps: np.ndarray) -> int:
    """Cycles between two 48-bit counters packed in three 32-bit words, start first."""
    words = [int(w) for w in np.asarray(timestamps).view(np.uint32)]
    halves = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    start = halves[0] | halves[1] << 16 | halves[2] << 32
    end = halves[3] | halves[4] << 16 | halves[5] << 32
    return end - start
