"""Moves the bytes of one page: in, through its update, out again; gradients to the scratch file and back.

An elementwise update runs chunk by chunk while the next chunks are being read and the last ones written: parameters
stay in the page's slab, optimizer state and spilled gradients pass through a small ring of buffers. Nothing here
decides when; the streamer does, and calls from its one thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from openwafer.streaming.files import Buffer, PageFile
from openwafer.streaming.page import ALIGN_BYTES, CHUNK_ELEMENTS, Region, align
from openwafer.streaming.resident import Gradients, Page, Ring, Ticket
from openwafer.streaming.store import Slot, Store
from openwafer.streaming.update import OptimizerSpec, apply


class Transfer:
    """Reads, updates and writes pages of one store.

    Attributes:
        apply_piece: what updates a piece of a parameter, as `update.apply`.
    """

    def __init__(self, store: Store, pages: Sequence[Page], optimizer: OptimizerSpec | None, ring: Ring | None):
        self.store = store
        self.pages = pages
        self.optimizer = optimizer
        self.apply_piece = apply
        self._ring = ring
        self._scratch: PageFile | None = None
        self._offsets: list[int] = []

    def close(self) -> None:
        """Close and remove the scratch file."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch.path.unlink(missing_ok=True)
            self._scratch = None

    def update(self, page: Page, ticket: Ticket, read_params: bool) -> None:
        """Apply an ordered update to a page, reading its parameters first if they are not in its slab."""
        if page.spec.elementwise:
            self._update_chunks(page, ticket, read_params)
        else:
            self._update_whole(page, ticket, read_params)

    def read_params(self, page: Page) -> None:
        assert page.slab is not None and page.stored is not None
        reads = [
            self.store.read(page.stored, 0, chunk, self._slab_chunk(page, page.spec.regions[0], chunk))
            for chunk in range(page.spec.regions[0].num_chunks)
        ]
        for read in reads:
            self.store.io.wait(read, f"reading {page.spec.name}")

    def _slab_chunk(self, page: Page, region: Region, chunk: int) -> memoryview:
        assert page.slab is not None
        start, stop = region.chunk_range(chunk)
        return page.slab.bytes[start:stop]

    def _update_chunks(self, page: Page, ticket: Ticket, read_params: bool) -> None:
        """The elementwise update, chunk by chunk: `ahead` chunks are being read while one is updated."""
        spec = page.spec
        target, write = self._target(page, ticket)
        on_disk = page.state is None
        buffers_each = (len(spec.regions) - 1 if on_disk else 0) + (1 if page.grads.spilled else 0)
        ahead = spec.num_chunks if not buffers_each else max(1, self._ring_count // (2 * buffers_each))
        coming: deque[tuple[int, list[Buffer], Buffer | None, list[Future]]] = deque()
        writes: list[Future] = []
        try:
            for chunk in range(spec.num_chunks + ahead):
                if chunk < spec.num_chunks:
                    coming.append(self._start_chunk(page, chunk, read_params, on_disk))
                if chunk >= ahead or chunk >= spec.num_chunks:
                    if not coming:
                        break
                    number, state, grads, reads = coming.popleft()
                    for read in reads:
                        self.store.io.wait(read, f"reading {spec.name}")
                    self._update_chunk(page, ticket, number, state, grads)
                    if grads is not None:
                        self._ring_give(grads)
                    writes += self._finish_chunk(page, target, number, state if on_disk else [], write)
            for future in writes:
                self.store.io.wait(future, f"writing {spec.name}")
        except BaseException:
            for _, state, grads, reads in coming:
                for read in reads:
                    read.cancel()
                del state, grads
            raise
        self._updated(page, target, write)

    @property
    def _ring_count(self) -> int:
        return self._ring.count if self._ring is not None else 1

    def _ring_take(self) -> Buffer:
        assert self._ring is not None
        return self._ring.take(self.store.io.timeout_s)

    def _ring_give(self, buffer: Buffer) -> None:
        assert self._ring is not None
        self._ring.give(buffer)

    def _start_chunk(
        self, page: Page, chunk: int, read_params: bool, on_disk: bool
    ) -> tuple[int, list[Buffer], Buffer | None, list[Future]]:
        spec, reads = page.spec, []
        state: list[Buffer] = []
        grads: Buffer | None = None
        if read_params:
            assert page.stored is not None
            reads.append(self.store.read(page.stored, 0, chunk, self._slab_chunk(page, spec.regions[0], chunk)))
        if on_disk:
            assert page.stored is not None
            for number, region in enumerate(spec.regions[1:], start=1):
                buffer = self._ring_take()
                start, stop = region.chunk_range(chunk)
                reads.append(self.store.read(page.stored, number, chunk, buffer.bytes[: stop - start]))
                state.append(buffer)
        else:
            assert page.state is not None
            state = page.state
        if page.grads.spilled:
            grads = self._ring_take()
            reads.append(self._read_scratch(page, chunk, grads))
        return chunk, state, grads, reads

    def _update_chunk(
        self, page: Page, ticket: Ticket, chunk: int, state: Sequence[Buffer], grads: Buffer | None
    ) -> None:
        assert self.optimizer is not None and page.slab is not None
        spec = page.spec
        first = chunk * CHUNK_ELEMENTS
        base = first if page.state is None else 0
        present = set(page.grads.present)
        flat = page.slab.view(spec.dtype, 0, spec.numel)
        for piece in spec.pieces(chunk):
            if piece.param not in present:
                continue
            param = spec.params[piece.param]
            length = piece.stop - piece.start
            if grads is not None:
                grad = grads.view(spec.dtype, piece.start - first, length)
            else:
                start = piece.start - param.offset
                grad = page.grads.tensors[piece.param].reshape(-1)[start : start + length]
            views = {
                tensor.name: buffer.view(tensor.dtype, piece.start - base, length)
                for tensor, buffer in zip(param.state, state, strict=True)
            }
            values = flat[piece.start : piece.stop]
            self._apply(page, ticket, piece.param, values, grad, views, piece.start)

    def _apply(
        self,
        page: Page,
        ticket: Ticket,
        index: int,
        values: torch.Tensor,
        grad: torch.Tensor,
        state: dict[str, torch.Tensor],
        start: int,
    ) -> None:
        """Update `values`, which begin at element `start` of the page."""
        assert self.optimizer is not None
        hyper = ticket.hyper[page.spec.params[index].group]
        step = page.steps[index] + 1
        first = page.first_element + start
        self.apply_piece(self.optimizer, hyper, step, values, grad, state, ticket.clip_coef, element=first)

    def _finish_chunk(
        self, page: Page, target: Slot | None, chunk: int, state: Sequence[Buffer], write: bool
    ) -> list[Future]:
        """Write an updated chunk and give its buffers back when they are on disk."""
        spec = page.spec
        if not write:
            return []
        assert target is not None
        region = spec.regions[0]
        futures = [self.store.write(target, spec, 0, chunk, self._slab_chunk(page, region, chunk))]
        if page.state is not None:
            for number, (region, buffer) in enumerate(zip(spec.regions[1:], page.state, strict=True), start=1):
                start, stop = region.chunk_range(chunk)
                futures.append(self.store.write(target, spec, number, chunk, buffer.bytes[start:stop]))
            return futures
        for number, (region, buffer) in enumerate(zip(spec.regions[1:], state, strict=True), start=1):
            start, stop = region.chunk_range(chunk)
            future = self.store.write(target, spec, number, chunk, buffer.bytes[: stop - start])
            future.add_done_callback(lambda _, buffer=buffer: self._ring_give(buffer))
            futures.append(future)
        return futures

    def _update_whole(self, page: Page, ticket: Ticket, read_params: bool) -> None:
        """The update of an optimizer that needs each parameter whole (Adafactor)."""
        spec = page.spec
        target, write = self._target(page, ticket)
        if read_params:
            self.read_params(page)
        state = page.state if page.state is not None else self.read_state(page)
        grads = dict(page.grads.tensors) if not page.grads.spilled else self.unspill(page)
        values = page.param_views()
        for index, grad in grads.items():
            param = spec.params[index]
            views = {
                tensor.name: state[0]
                .tensor[offset : offset + math.prod(tensor.shape) * tensor.dtype.itemsize]
                .view(tensor.dtype)
                .view(tensor.shape)
                for tensor, offset in zip(param.state, param.aux_offsets, strict=True)
            }
            self._apply(page, ticket, index, values[index], grad.view(param.shape), views, param.offset)
        if write:
            assert target is not None
            writes = self._write_all(page, target, state)
            for future in writes:
                self.store.io.wait(future, f"writing {spec.name}")
        self._updated(page, target, write)

    def read_state(self, page: Page) -> list[Buffer]:
        """The optimizer state of a page, whole."""
        assert page.stored is not None
        buffers, reads = [], []
        for number, region in enumerate(page.spec.regions[1:], start=1):
            buffer = Buffer(region.num_bytes)
            for chunk in range(region.num_chunks):
                start, stop = region.chunk_range(chunk)
                reads.append(self.store.read(page.stored, number, chunk, buffer.bytes[start:stop]))
            buffers.append(buffer)
        for read in reads:
            self.store.io.wait(read, f"reading {page.spec.name}")
        return buffers

    def _write_all(self, page: Page, target: Slot, state: Sequence[Buffer]) -> list[Future]:
        assert page.slab is not None
        futures = []
        for number, (region, buffer) in enumerate(zip(page.spec.regions, [page.slab, *state], strict=True)):
            for chunk in range(region.num_chunks):
                start, stop = region.chunk_range(chunk)
                futures.append(self.store.write(target, page.spec, number, chunk, buffer.bytes[start:stop]))
        return futures

    def _target(self, page: Page, ticket: Ticket) -> tuple[Slot | None, bool]:
        """Where an update is written, and whether it is: a resident page is written only when it is committed."""
        if page.stored is None:
            return None, False
        write = ticket.durable or page.state is None
        return (self.store.turn(page.stored) if write else None), write

    def _updated(self, page: Page, target: Slot | None, write: bool) -> None:
        if page.stored is None:
            return
        if write:
            assert target is not None
            page.stored.current = page.stored.target_name
        page.dirty = not write

    def spill(self, page: Page) -> Gradients:
        """Write the gradients of a page to the scratch file; what stands for them afterwards."""
        spec = page.spec
        scratch = self._scratch_file()
        present = tuple(sorted(page.grads.tensors))
        itemsize = spec.dtype.itemsize
        digests: list[Future[int]] = []
        for chunk in range(spec.num_chunks):
            buffer = self._ring_take()
            first = chunk * CHUNK_ELEMENTS
            for piece in spec.pieces(chunk):
                if piece.param in page.grads.tensors:
                    start = piece.start - spec.params[piece.param].offset
                    source = page.grads.tensors[piece.param].reshape(-1)[start : start + piece.stop - piece.start]
                    buffer.view(spec.dtype, piece.start - first, piece.stop - piece.start).copy_(source)
            size = align(min(CHUNK_ELEMENTS, spec.numel - first) * itemsize, ALIGN_BYTES)
            offset = self._offsets[spec.index] + first * itemsize
            future = self.store.io.write(scratch, buffer.bytes[:size], offset)
            future.add_done_callback(lambda _, buffer=buffer: self._ring_give(buffer))
            digests.append(future)
        sums = [self.store.io.wait(future, f"spilling gradients of {spec.name}") for future in digests]
        return Gradients({}, present, sums)

    def _scratch_file(self) -> PageFile:
        if self._scratch is None:
            offsets, size = [], 0
            for page in self.pages:
                offsets.append(size)
                size += page.spec.param_bytes if page.spec.trainable else 0
            self._scratch = PageFile(self.store.files, self.store.root / "gradients.scratch", size, create=True)
            self._offsets = offsets
        return self._scratch

    def _read_scratch(self, page: Page, chunk: int, buffer: Buffer) -> Future[None]:
        itemsize = page.spec.dtype.itemsize
        first = chunk * CHUNK_ELEMENTS
        size = align(min(CHUNK_ELEMENTS, page.spec.numel - first) * itemsize, ALIGN_BYTES)
        offset = self._offsets[page.spec.index] + first * itemsize
        return self.store.io.read(self._scratch_file(), buffer.bytes[:size], offset, page.grads.sums[chunk])

    def unspill(self, page: Page) -> dict[int, torch.Tensor]:
        """The spilled gradients of a page, in memory again."""
        spec = page.spec
        grads = {i: torch.empty(spec.params[i].shape, dtype=spec.dtype) for i in page.grads.spilled}
        for chunk in range(spec.num_chunks):
            buffer = self._ring_take()
            try:
                self.store.io.wait(self._read_scratch(page, chunk, buffer), f"reading gradients of {spec.name}")
                for piece in spec.pieces(chunk):
                    if piece.param in grads:
                        start = piece.start - spec.params[piece.param].offset
                        length = piece.stop - piece.start
                        source = buffer.view(spec.dtype, piece.start - chunk * CHUNK_ELEMENTS, length)
                        grads[piece.param].view(-1)[start : start + length].copy_(source)
            finally:
                self._ring_give(buffer)
        return grads

    def write_dirty(self) -> None:
        """Write pages that were updated in memory alone, before a commit."""
        for page in self.pages:
            if page.dirty and page.stored is not None:
                assert page.state is not None
                target = self.store.turn(page.stored)
                for future in self._write_all(page, target, page.state):
                    self.store.io.wait(future, f"writing {page.spec.name}")
                page.stored.current = page.stored.target_name
                page.dirty = False
