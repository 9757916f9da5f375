"""Brings pages to the compute thread in time, updates them on the way, and takes their gradients back.

One background thread does all of it, in this order of urgency: a page that is waited for, gradients over their share
of memory, the next page of the plan, updates nobody waits for, the commit. An update runs chunk by chunk as the bytes
arrive: parameters stay in the page's slab, optimizer state and spilled gradients pass through a small ring of
buffers. Which slab gives way is Belady's rule on the known order of accesses: the page used again the latest.
The parameters of a page are never changed while the page is held.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from openwafer.base.errors import OpenwaferError, StoreError, StoreTimeout
from openwafer.streaming.files import Buffer, PageFile
from openwafer.streaming.page import CHUNK_ELEMENTS, PageSpec, Region
from openwafer.streaming.store import Slot, Store, StoredPage
from openwafer.streaming.update import OptimizerSpec, apply


@dataclass(frozen=True)
class Ticket:
    """One optimizer step, to be applied to every page that has gradients."""

    hyper: tuple[Mapping[str, Any], ...]
    clip_coef: torch.Tensor | None
    durable: bool


@dataclass
class Gradients:
    """Gradients of one page: in memory by parameter index, or spilled to the scratch file."""

    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    spilled: tuple[int, ...] = ()
    sums: list[int | None] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(grad.numel() * grad.element_size() for grad in self.tensors.values())

    @property
    def present(self) -> tuple[int, ...]:
        return self.spilled or tuple(self.tensors)


class Page:
    """The run-time state of one page; guarded by the streamer's lock."""

    def __init__(self, spec: PageSpec, stored: StoredPage | None, first_element: int):
        self.spec = spec
        self.stored = stored
        self.first_element = first_element
        self.slab: Buffer | None = None
        self.valid = False
        self.holds = 0
        self.loading = False
        self.pending: Ticket | None = None
        self.grads = Gradients()
        self.steps = [0] * len(spec.params)
        self.state: list[Buffer] | None = None
        self.dirty = False

    @property
    def ready(self) -> bool:
        return self.valid and self.pending is None and not self.loading

    def param_views(self) -> list[torch.Tensor]:
        """The page's parameters as views of its slab."""
        assert self.slab is not None
        flat = self.slab.view(self.spec.dtype, 0, self.spec.numel)
        return [flat[p.offset : p.offset + p.numel].view(p.shape) for p in self.spec.params]


class Ring:
    """A fixed number of chunk buffers; `take` waits until one is given back."""

    def __init__(self, num_bytes: int, count: int):
        self._free = [Buffer(num_bytes) for _ in range(count)]
        self.count = count
        self._condition = threading.Condition()

    def take(self, timeout_s: float) -> Buffer:
        with self._condition:
            if not self._condition.wait_for(lambda: self._free, timeout_s):
                raise StoreTimeout(f"no write has finished in {timeout_s:.0f} s: the disk or its driver hangs")
            return self._free.pop()

    def give(self, buffer: Buffer) -> None:
        with self._condition:
            self._free.append(buffer)
            self._condition.notify()

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until every buffer is back, which means that every write has ended."""
        with self._condition:
            if not self._condition.wait_for(lambda: len(self._free) == self.count, timeout_s):
                raise StoreTimeout(f"writes have not finished in {timeout_s:.0f} s: the disk or its driver hangs")


class Streamer:
    """Owns the memory of all pages and the thread that moves them.

    Args:
        pool_bytes: for parameter slabs; None keeps every page in memory.
        grad_bytes: for gradients waiting for their update; None keeps all of them in memory.
        bind, unbind: called with a page and its parameter views when they come to or leave memory.
    """

    def __init__(
        self,
        store: Store,
        specs: Sequence[PageSpec],
        optimizer: OptimizerSpec | None,
        *,
        pool_bytes: int | None,
        grad_bytes: int | None,
        ring_chunks: int = 12,
        bind: Callable[[int, list[torch.Tensor]], None],
        unbind: Callable[[int], None],
    ):
        self.store = store
        self.optimizer = optimizer
        self.pool_bytes = pool_bytes
        self.grad_bytes = grad_bytes
        self._bind, self._unbind = bind, unbind
        firsts = [0, *itertools.accumulate(spec.numel for spec in specs)]
        self.pages = [Page(spec, store.pages[i] if store.pages else None, firsts[i]) for i, spec in enumerate(specs)]
        self.stall_s: dict[str, float] = {}
        self._free_slabs: dict[int, list[Buffer]] = {}
        self._slab_bytes = 0
        self._chunk_bytes = CHUNK_ELEMENTS * 8 if any(s.dtype.itemsize > 4 for s in specs) else CHUNK_ELEMENTS * 4
        self._ring = Ring(self._chunk_bytes, ring_chunks) if store.pages else None
        self._scratch: PageFile | None = None
        self._scratch_offsets: list[int] = []
        self._plan: list[tuple[int, ...]] = []
        self._position = 0
        self._wanted: deque[int] = deque()
        self._commit_state: tuple[dict[str, Any], bytes | None] | None = None
        self._on_commit: Callable[[], None] | None = None
        self._busy = False
        self._failure: BaseException | None = None
        self._closing = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="openwafer-streamer", daemon=True)

    def start(self) -> None:
        """Begin to stream; pages must have their first contents in the store or in their slabs by now."""
        self._thread.start()

    def configure(self, pool_bytes: int, grad_bytes: int, resident: frozenset[int]) -> None:
        """Set the shares of memory. Pages in `resident` keep their optimizer state in memory from now on."""
        with self._changed:
            self.pool_bytes, self.grad_bytes = pool_bytes, grad_bytes
            self._wait(lambda: not self._busy and not any(page.loading for page in self.pages), "settling")
            for index in resident:
                page = self.pages[index]
                if page.state is None:
                    page.state = self._read_state(page)
            self._changed.notify_all()

    @property
    def memory_bytes(self) -> int:
        """Memory that pages take now: slabs, buffers, state and gradients."""
        ring = 0 if self._ring is None else self._ring.count * self._chunk_bytes
        state = sum(buffer.num_bytes for page in self.pages for buffer in page.state or ())
        return self._slab_bytes + ring + state + sum(page.grads.num_bytes for page in self.pages)

    # --- called by the compute thread ---------------------------------------------------------------------------

    def acquire(self, indices: Sequence[int], cause: str) -> None:
        """Hold pages: wait until they are in memory and up to date. Waiting is counted under `cause`."""
        with self._changed:
            self._raise_failure()
            for index in indices:
                self.pages[index].holds += 1
            missing = [i for i in indices if not self.pages[i].ready]
            if missing:
                started = time.perf_counter()
                self._wanted.extend(missing)
                self._changed.notify_all()
                self._wait(lambda: all(self.pages[i].ready for i in indices), f"loading {self._names(missing)}")
                self.stall_s[cause] = self.stall_s.get(cause, 0.0) + time.perf_counter() - started

    def release(self, indices: Sequence[int]) -> None:
        """Give up a hold; the page may leave memory."""
        with self._changed:
            for index in indices:
                self.pages[index].holds -= 1
                assert self.pages[index].holds >= 0
            self._changed.notify_all()

    def plan(self, accesses: Sequence[tuple[int, ...]]) -> None:
        """Tell the whole cycle of accesses to come (sets of pages), starting at the next one."""
        with self._changed:
            self._plan = list(accesses)
            self._position = 0
            self._changed.notify_all()

    def advance(self, position: int) -> None:
        """Tell that the compute thread has reached `position` of the plan."""
        with self._changed:
            self._position = position
            self._changed.notify_all()

    def stash(self, index: int, grads: Mapping[int, torch.Tensor]) -> None:
        """Take the gradients of a page, by parameter index, until their update."""
        with self._changed:
            self._raise_failure()
            page = self.pages[index]
            assert not page.grads.spilled and page.pending is None
            page.grads.tensors.update(grads)
            self._changed.notify_all()
            slack = page.spec.param_bytes
            if self._over_grad_budget(slack):
                started = time.perf_counter()
                self._wait(lambda: not self._over_grad_budget(slack), "spilling gradients")
                self.stall_s["gradients"] = self.stall_s.get("gradients", 0.0) + time.perf_counter() - started

    def take_gradients(self, index: int) -> dict[int, torch.Tensor]:
        """Give back the stashed gradients of a page (to add to them), reading them from disk if need be."""
        with self._changed:
            page = self.pages[index]
            assert page.pending is None, "gradients under update"
            self._wait(lambda: not page.loading, "spilling gradients")
            if page.grads.spilled:
                page.loading = True
            else:
                grads, page.grads = page.grads.tensors, Gradients()
                return grads
        try:
            grads = self._unspill(page)
        finally:
            with self._changed:
                page.loading = False
                self._changed.notify_all()
        page.grads = Gradients()
        return grads

    def drop_gradients(self) -> None:
        """Forget all stashed gradients (a skipped step, or `zero_grad`)."""
        with self._changed:
            self._wait(lambda: not any(page.loading and page.pending is None for page in self.pages), "spilling")
            for page in self.pages:
                if page.pending is None:
                    page.grads = Gradients()

    def issue(self, ticket: Ticket) -> None:
        """Order an optimizer step for every page with gradients; each runs before the page's next use."""
        with self._changed:
            self._raise_failure()
            self._wait(lambda: not any(page.loading for page in self.pages if page.grads.present), "spilling gradients")
            for page in self.pages:
                if page.grads.present:
                    assert page.pending is None and page.holds == 0
                    page.pending = ticket
            self._changed.notify_all()

    def pending(self) -> bool:
        """Whether updates are still to be applied."""
        with self._lock:
            return any(page.pending for page in self.pages)

    def flush(self) -> None:
        """Apply every ordered update now and wait until it is written."""
        with self._changed:
            self._wanted.extend(i for i, page in enumerate(self.pages) if page.pending)
            self._changed.notify_all()
            self._wait(
                lambda: not any(p.pending or p.loading for p in self.pages) and not self._busy, "applying updates"
            )

    def state_of(self, index: int) -> list[Buffer]:
        """The optimizer state of a page, whole; after `flush`."""
        page = self.pages[index]
        return page.state if page.state is not None else self._read_state(page)

    def commit_when_updated(self, state: dict[str, Any], buffers: bytes | None, done: Callable[[], None]) -> None:
        """Commit once every ordered update is applied; `done` is called in the streamer's thread."""
        with self._changed:
            assert self._commit_state is None
            self._commit_state, self._on_commit = (state, buffers), done
            self._changed.notify_all()

    def wait_committed(self) -> None:
        """Wait until no commit is outstanding."""
        with self._changed:
            self._wanted.extend(i for i, page in enumerate(self.pages) if page.pending)
            self._changed.notify_all()
            self._wait(lambda: self._commit_state is None, "committing")

    def close(self) -> None:
        """Stop the thread; ordered updates that were not flushed are dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self.store.io.timeout_s)
        for index, page in enumerate(self.pages):
            if page.valid:
                self._unbind(index)
            page.slab = page.state = None
            page.valid = False
            page.grads = Gradients()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch.path.unlink(missing_ok=True)

    # --- waiting --------------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the streamer's thread, which fails loudly and bounds each of its own waits."""
        while not self._changed.wait_for(lambda: condition() or self._failure is not None, 60.0):
            if not self._thread.is_alive():
                raise StoreError(f"the streaming thread has ended while {what}")
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure = self._failure
            if isinstance(failure, OpenwaferError):
                raise type(failure)(str(failure)) from failure
            raise StoreError(f"streaming stopped: {failure!r}; the last committed step is whole") from failure

    def _names(self, indices: Sequence[int]) -> str:
        return ", ".join(self.pages[i].spec.name for i in indices)

    # --- the streamer's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    work = self._next_work()
                    while work is None:
                        self._busy = False
                        self._changed.notify_all()
                        if self._closing:
                            return
                        self._changed.wait(5.0)
                        work = self._next_work()
                    self._busy = True
                work()
                with self._changed:
                    self._changed.notify_all()
        except BaseException as failure:  # handed to the compute thread, which raises it
            with self._changed:
                self._failure = failure
                self._busy = False
                self._changed.notify_all()

    def _next_work(self) -> Callable[[], None] | None:
        if self._closing:
            return None
        while self._wanted:
            page = self.pages[self._wanted[0]]
            if page.ready:
                self._wanted.popleft()
                continue
            page.loading = True
            return lambda: self._bring(page, -1)
        if self._over_grad_budget():
            victim = self._farthest([p for p in self.pages if p.grads.tensors and p.pending is None and not p.loading])
            if victim is not None:
                victim.loading = True
                return lambda: self._spill(victim)
        planned = self._next_planned()
        if planned is not None:
            page, distance = planned
            page.loading = True
            return lambda: self._bring(page, distance)
        for page in self.pages:
            if page.pending and page.holds == 0 and self._idle_update(page):
                page.loading = True
                return lambda page=page: self._bring(page, len(self._plan))
        if self._commit_state is not None and not any(page.pending for page in self.pages):
            return self._commit
        return None

    # --- order of use -----------------------------------------------------------------------------------------------

    def _next_uses(self) -> dict[int, int]:
        """For each page of the plan, how many accesses away its next use is."""
        uses: dict[int, int] = {}
        length = len(self._plan)
        for distance in range(length):
            for index in self._plan[(self._position + distance) % length]:
                uses.setdefault(index, distance)
        return uses

    def _farthest(self, pages: Sequence[Page]) -> Page | None:
        uses = self._next_uses()
        return max(pages, key=lambda page: uses.get(page.spec.index, len(self._plan) + 1), default=None)

    def _next_planned(self) -> tuple[Page, int] | None:
        """The next page of the plan that is not ready, and how far away its use is, if it may come in now."""
        length = len(self._plan)
        seen: set[int] = set()
        for distance in range(length):
            for index in self._plan[(self._position + distance) % length]:
                page = self.pages[index]
                if index in seen or page.ready or page.loading:
                    continue
                seen.add(index)
                if page.holds:
                    continue
                return (page, distance) if page.valid or self._fits(page, distance) else None
        return None

    def _idle_update(self, page: Page) -> bool:
        """Whether an ordered update may run although the plan does not ask for the page yet."""
        return page.valid or self._fits(page, len(self._plan))

    def _fits(self, page: Page, distance: int) -> bool:
        """Whether a page can come in by evicting only pages that are used later than `distance`."""
        if self.pool_bytes is None:
            return True
        free = sum(size * len(slabs) for size, slabs in self._free_slabs.items())
        evictable = sum(victim.spec.param_bytes for victim in self._victims(page, distance))
        return self._slab_bytes - free - evictable + page.spec.param_bytes <= self.pool_bytes

    def _victims(self, page: Page, distance: int) -> list[Page]:
        """Pages that may leave memory for one that is used in `distance` accesses, the farthest first."""
        uses = self._next_uses()
        never = len(self._plan) + 1
        pages = [
            p
            for p in self.pages
            if p.valid and p.holds == 0 and not p.loading and p.state is None and p is not page
            and uses.get(p.spec.index, never) > distance
        ]
        return sorted(pages, key=lambda p: uses.get(p.spec.index, never), reverse=True)

    # --- slabs ------------------------------------------------------------------------------------------------------

    def _allocate(self, page: Page, distance: int) -> None:
        """Give a page a slab, evicting pages used later than `distance` accesses away."""
        num_bytes = page.spec.param_bytes
        with self._lock:
            victims = self._victims(page, distance) if self.pool_bytes is not None else []
            while not self._free_slabs.get(num_bytes) and not self._room(num_bytes):
                if not self._drop_free_slab():
                    if not victims:
                        break
                    self._evict(victims.pop(0))
            free = self._free_slabs.get(num_bytes)
            if free:
                page.slab = free.pop()
                return
            self._slab_bytes += num_bytes
        page.slab = Buffer(num_bytes)

    def _room(self, num_bytes: int) -> bool:
        return self.pool_bytes is None or self._slab_bytes + num_bytes <= self.pool_bytes

    def _drop_free_slab(self) -> bool:
        for num_bytes, slabs in self._free_slabs.items():
            if slabs:
                slabs.pop()
                self._slab_bytes -= num_bytes
                return True
        return False

    def _evict(self, page: Page) -> None:
        assert page.slab is not None and page.holds == 0 and not page.dirty
        self._unbind(page.spec.index)
        self._free_slabs.setdefault(page.spec.param_bytes, []).append(page.slab)
        page.slab, page.valid = None, False

    # --- bringing a page --------------------------------------------------------------------------------------------

    def _bring(self, page: Page, distance: int) -> None:
        """Read what is missing of a page, apply its ordered update on the way, write what changed."""
        read_params = not page.valid
        if read_params:
            self._allocate(page, distance)
        ticket = page.pending
        if ticket is None:
            self._read_params(page)
        elif not page.spec.elementwise:
            self._update_whole(page, ticket, read_params)
        else:
            self._update_chunks(page, ticket, read_params)
        with self._changed:
            if ticket is not None:
                for index in page.grads.present:
                    page.steps[index] += 1
                page.grads = Gradients()
                page.pending = None
            page.loading = False
            if read_params:
                page.valid = True
                self._bind(page.spec.index, page.param_views())
            self._changed.notify_all()

    def _read_params(self, page: Page) -> None:
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
        apply(self.optimizer, hyper, step, values, grad, state, ticket.clip_coef, element=page.first_element + start)

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
            self._read_params(page)
        state = page.state if page.state is not None else self._read_state(page)
        grads = dict(page.grads.tensors) if not page.grads.spilled else self._unspill(page)
        values = page.param_views()
        for index, grad in grads.items():
            param = spec.params[index]
            views = {
                tensor.name: state[0]
                .tensor[offset : offset + _num_bytes(tensor)]
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

    def _read_state(self, page: Page) -> list[Buffer]:
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

    # --- gradients --------------------------------------------------------------------------------------------------

    def _over_grad_budget(self, slack_bytes: int = 0) -> bool:
        """Whether gradients that wait for their update take more memory than they may."""
        if self.grad_bytes is None:
            return False
        waiting = sum(page.grads.num_bytes for page in self.pages if page.pending is None)
        return waiting > self.grad_bytes + slack_bytes

    def _spill(self, page: Page) -> None:
        """Move the gradients of a page from memory to the scratch file."""
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
            size = min(CHUNK_ELEMENTS, spec.numel - first) * itemsize
            offset = self._scratch_offsets[spec.index] + first * itemsize
            future = self.store.io.write(scratch, buffer.bytes[:size], offset)
            future.add_done_callback(lambda _, buffer=buffer: self._ring_give(buffer))
            digests.append(future)
        sums = [self.store.io.wait(future, f"spilling gradients of {spec.name}") for future in digests]
        with self._changed:
            page.grads = Gradients({}, present, sums)
            page.loading = False
            self._changed.notify_all()

    def _scratch_file(self) -> PageFile:
        if self._scratch is None:
            offsets, size = [], 0
            for page in self.pages:
                offsets.append(size)
                size += page.spec.param_bytes if page.spec.trainable else 0
            self._scratch = PageFile(self.store.files, self.store.root / "gradients.scratch", size, create=True)
            self._scratch_offsets = offsets
        return self._scratch

    def _read_scratch(self, page: Page, chunk: int, buffer: Buffer) -> Future[None]:
        itemsize = page.spec.dtype.itemsize
        first = chunk * CHUNK_ELEMENTS
        size = min(CHUNK_ELEMENTS, page.spec.numel - first) * itemsize
        offset = self._scratch_offsets[page.spec.index] + first * itemsize
        return self.store.io.read(self._scratch_file(), buffer.bytes[:size], offset, page.grads.sums[chunk])

    def _unspill(self, page: Page) -> dict[int, torch.Tensor]:
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

    # --- commit -----------------------------------------------------------------------------------------------------

    def write_dirty(self) -> None:
        """Write resident pages that were updated in memory alone; runs in the streamer's thread before a commit."""
        for page in self.pages:
            if page.dirty and page.stored is not None:
                assert page.state is not None
                target = self.store.turn(page.stored)
                for future in self._write_all(page, target, page.state):
                    self.store.io.wait(future, f"writing {page.spec.name}")
                page.stored.current = page.stored.target_name
                page.dirty = False

    def _commit(self) -> None:
        assert self._commit_state is not None
        self.write_dirty()
        state, buffers = self._commit_state
        state = {**state, "steps": [page.steps for page in self.pages]}
        self.store.commit(state, buffers)
        with self._changed:
            done, self._commit_state, self._on_commit = self._on_commit, None, None
            self._changed.notify_all()
        if done is not None:
            done()


def _num_bytes(tensor: Any) -> int:
    size = tensor.dtype.itemsize
    for length in tensor.shape:
        size *= length
    return size
