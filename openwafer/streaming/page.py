"""The layout of a page: the parameters of one layer, flat, with their optimizer state beside them.

A page holds parameters of one dtype that are all trained or all frozen. Its parameters lie in one flat index space,
each starting at a multiple of `ALIGN_ELEMENTS`; every elementwise optimizer state (`exp_avg`, ...) has a region of its
own with the same index space, so that a chunk of the page is one contiguous range in each region. State that is not
elementwise (Adafactor's row and column sums) lies in one last region. Regions start at multiples of `ALIGN_BYTES`,
as O_DIRECT wants it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from openwafer.streaming.update import StateTensor

ALIGN_BYTES = 4096
ALIGN_ELEMENTS = 1024
CHUNK_ELEMENTS = 1 << 20


def align(value: int, to: int) -> int:
    """`value` rounded up to a multiple of `to`."""
    return -(-value // to) * to


@dataclass(frozen=True)
class ParamSpec:
    """Where one parameter lies in its page; `offset` and `numel` count elements, `group` is its optimizer group."""

    name: str
    shape: tuple[int, ...]
    offset: int
    group: int
    state: tuple[StateTensor, ...] = ()
    aux_offsets: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Region:
    """A contiguous part of a page's slot; `chunk_bytes` of it belong to each chunk."""

    name: str
    offset: int
    num_bytes: int
    chunk_bytes: int

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Byte range of a chunk within the region."""
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.num_bytes)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_bytes // self.chunk_bytes) if self.num_bytes else 0


@dataclass(frozen=True)
class Piece:
    """The part of one parameter that lies in one chunk: elements `start:stop` of the page."""

    param: int
    start: int
    stop: int


@dataclass(frozen=True)
class PageSpec:
    """The whole layout of a page; equal specs mean files that can be read as each other."""

    index: int
    name: str
    dtype: torch.dtype
    trainable: bool
    elementwise: bool
    params: tuple[ParamSpec, ...]
    numel: int
    regions: tuple[Region, ...]

    @property
    def param_bytes(self) -> int:
        return self.regions[0].num_bytes

    @property
    def slot_bytes(self) -> int:
        last = self.regions[-1]
        return align(last.offset + last.num_bytes, ALIGN_BYTES)

    @property
    def state_bytes(self) -> int:
        return sum(region.num_bytes for region in self.regions[1:])

    @property
    def num_chunks(self) -> int:
        return -(-self.numel // CHUNK_ELEMENTS)

    def pieces(self, chunk: int) -> Iterator[Piece]:
        """The parts of parameters in a chunk, in order."""
        low, high = chunk * CHUNK_ELEMENTS, (chunk + 1) * CHUNK_ELEMENTS
        for index, param in enumerate(self.params):
            start, stop = max(param.offset, low), min(param.offset + param.numel, high)
            if start < stop:
                yield Piece(index, start, stop)


def layout_page(
    index: int,
    name: str,
    dtype: torch.dtype,
    trainable: bool,
    params: Sequence[tuple[str, tuple[int, ...], int, Sequence[StateTensor]]],
    elementwise: bool,
) -> PageSpec:
    """Lay out a page.

    Args:
        params: (name, shape, optimizer group, state tensors) of each parameter.
        elementwise: whether every state tensor has its parameter's shape and may be updated in pieces.
    """
    specs: list[ParamSpec] = []
    offset = aux_bytes = 0
    for param_name, shape, group, state in params:
        aux: list[int] = []
        if not elementwise:
            for tensor in state:
                aux.append(aux_bytes)
                aux_bytes += align(prod(tensor.shape) * tensor.dtype.itemsize, 64)
        specs.append(ParamSpec(param_name, tuple(shape), offset, group, tuple(state), tuple(aux)))
        offset += align(prod(shape), ALIGN_ELEMENTS)
    numel = offset

    regions: list[Region] = []
    position = 0

    def add(region_name: str, num_bytes: int, chunk_bytes: int) -> None:
        nonlocal position
        num_bytes = align(num_bytes, ALIGN_BYTES)
        regions.append(Region(region_name, position, num_bytes, chunk_bytes))
        position += num_bytes

    add("param", numel * dtype.itemsize, CHUNK_ELEMENTS * dtype.itemsize)
    if elementwise and specs:
        for tensor in specs[0].state:
            add(tensor.name, numel * tensor.dtype.itemsize, CHUNK_ELEMENTS * tensor.dtype.itemsize)
    elif aux_bytes:
        add("aux", aux_bytes, 4 * CHUNK_ELEMENTS)
    return PageSpec(index, name, dtype, trainable, elementwise, tuple(specs), numel, tuple(regions))
