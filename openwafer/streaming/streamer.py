"""Brings pages to the compute thread in time, updates them on the way, and takes their gradients back.

One background thread does all of it, in this order of urgency: a page that is waited for, gradients over their share
of memory, the next page of the plan, updates nobody waits for, the commit. Which slab gives way is Belady's rule on
the known order of accesses: the page used again the latest. The parameters of a page never change while it is held.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from openwafer.base.errors import OpenwaferError, StoreError
from openwafer.streaming.files import Buffer
from openwafer.streaming.link import Event, Link
from openwafer.streaming.page import CHUNK_ELEMENTS, PageSpec
from openwafer.streaming.resident import Gradients, Page, Ring, Ticket, in_use
from openwafer.streaming.store import Store
from openwafer.streaming.transfer import Transfer
from openwafer.streaming.update import OptimizerSpec, apply


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
        self._transfer = Transfer(store, self.pages, optimizer, self._ring)
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

    def place(self, index: int, slab: Buffer, state: list[Buffer]) -> None:
        """Give a page that only memory holds its contents, before `start`."""
        page = self.pages[index]
        page.slab, page.state, page.valid = slab, state, True
        self._bind(index, page.param_views())

    def update_over(self, link: Link) -> None:
        """From now on updates are computed on the device of a link."""
        self._transfer.apply_piece = link.update

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
                    page.state = self._transfer.read_state(page)
            self._changed.notify_all()

    @property
    def memory_bytes(self) -> int:
        """Memory that pages take now: slabs, buffers, state and gradients."""
        ring = 0 if self._ring is None else self._ring.count * self._chunk_bytes
        state = sum(buffer.num_bytes for page in self.pages for buffer in page.state or ())
        slabs = self._slab_bytes or sum(page.slab.num_bytes for page in self.pages if page.slab is not None)
        return slabs + ring + state + sum(page.grads.num_bytes for page in self.pages)

    def buffers(self) -> list[Buffer]:
        """The memory that has to do with a device: slabs, and what updates pass through if they are computed there."""
        with self._lock:
            slabs = [page.slab for page in self.pages if page.slab is not None]
            if self._transfer.apply_piece is apply:
                return slabs
            state = [buffer for page in self.pages for buffer in page.state or ()]
            return [*slabs, *state, *(self._ring.buffers if self._ring is not None else ())]

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
                self._stalled(cause, started)

    def hold_if_ready(self, index: int) -> bool:
        """Hold a page if that takes no waiting."""
        with self._lock:
            page = self.pages[index]
            page.holds += page.ready
            return page.ready

    def slab(self, index: int) -> torch.Tensor:
        """The bytes of a page that is held."""
        slab = self.pages[index].slab
        assert slab is not None
        return slab.tensor

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

    def stash(self, index: int, grads: Mapping[int, torch.Tensor], arrival: Event | None = None) -> None:
        """Take the gradients of a page, by parameter index, until their update; `arrival`: when they have come."""
        with self._changed:
            self._raise_failure()
            page = self.pages[index]
            assert not page.grads.spilled and page.pending is None
            page.grads.tensors.update(grads)
            page.grads.arrival = arrival
            self._changed.notify_all()
            slack = page.spec.param_bytes
            if self._over_grad_budget(slack):
                started = time.perf_counter()
                self._wait(lambda: not self._over_grad_budget(slack), "spilling gradients")
                self._stalled("gradients", started)

    def take_gradients(self, index: int) -> dict[int, torch.Tensor]:
        """Give back the stashed gradients of a page (to add to them), reading them from disk if need be."""
        with self._changed:
            page = self.pages[index]
            assert page.pending is None, "gradients under update"
            self._wait(lambda: not page.loading, "spilling gradients")
            if page.grads.spilled:
                page.loading = True
            else:
                page.grads.wait()
                grads, page.grads = page.grads.tensors, Gradients()
                return grads
        started = time.perf_counter()
        try:
            grads = self._transfer.unspill(page)
        finally:
            with self._changed:
                self._stalled("gradients", started)
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
        return page.state if page.state is not None else self._transfer.read_state(page)

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
            page.grads = Gradients()
            page.state = None
            if page.stored is None:
                continue  # memory is all these parameters have: they stay the model's
            if page.valid:
                self._unbind(index)
            page.slab, page.valid = None, False
        self._transfer.close()

    # --- waiting --------------------------------------------------------------------------------------------------

    def _stalled(self, cause: str, started: float) -> None:
        """Count the seconds since `started` as waiting."""
        self.stall_s[cause] = self.stall_s.get(cause, 0.0) + time.perf_counter() - started

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
        except BaseException as failure:  # noqa: BLE001  # handed to the compute thread, which raises it
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
            if p.valid
            and p.holds == 0
            and not p.loading
            and p.state is None
            and p is not page
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
        if in_use(page.slab.tensor):
            # Somebody still uses a view of a parameter: the memory stays theirs, the pool gets some of its own.
            page.slab = Buffer(page.slab.num_bytes)
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
            self._transfer.read_params(page)
        else:
            page.grads.wait()
            self._transfer.update(page, ticket, read_params)
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

    # --- gradients --------------------------------------------------------------------------------------------------

    def _over_grad_budget(self, slack_bytes: int = 0) -> bool:
        """Whether gradients that wait for their update take more memory than they may."""
        if self.grad_bytes is None:
            return False
        waiting = sum(page.grads.num_bytes for page in self.pages if page.pending is None)
        return waiting > self.grad_bytes + slack_bytes

    def _spill(self, page: Page) -> None:
        page.grads.wait()
        spilled = self._transfer.spill(page)
        with self._changed:
            page.grads = spilled
            page.loading = False
            self._changed.notify_all()

    # --- commit -----------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        assert self._commit_state is not None
        self._transfer.write_dirty()
        state, buffers = self._commit_state
        state = {**state, "steps": [page.steps for page in self.pages]}
        self.store.commit(state, buffers)
        with self._changed:
            done, self._commit_state, self._on_commit = self._on_commit, None, None
            self._changed.notify_all()
        if done is not None:
            done()
