"""The pages that are in the memory of a device: a window on those that the streamer has in host memory.

A page is copied up on its way to being used and is thrown away, never copied back: the host has the page, and the
copy is good until the next optimizer step. Gradients are copied down as soon as they are final. Slabs on the device
have the exact size of a page and are used again; which page gives way is Belady's rule, as on the host. Everything
here is called by the threads that compute, one at a time; only the streamer knows other threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from openwafer.streaming.files import Buffer
from openwafer.streaming.link import Event, Link
from openwafer.streaming.page import ALIGN_BYTES
from openwafer.streaming.resident import Page, Ticket, in_use, param_views
from openwafer.streaming.streamer import Streamer


class Window:
    """Stands where the streamer stands for an engine that computes on a device.

    Args:
        pool_bytes: for slabs on the device; None holds every page.
        bind, unbind: called with a page and its parameter views on the device when they come and go.
    """

    def __init__(
        self,
        host: Streamer,
        link: Link,
        *,
        pool_bytes: int | None = None,
        bind: Callable[[int, list[torch.Tensor]], None],
        unbind: Callable[[int], None],
    ):
        self.host = host
        self.link = link
        self.pool_bytes = pool_bytes
        self.copied_up_bytes = self.copied_down_bytes = 0
        self._bind, self._unbind = bind, unbind
        self._slabs: dict[int, torch.Tensor] = {}
        self._arrivals: dict[int, Event] = {}
        self._bound: set[int] = set()
        self._holds: dict[int, int] = {}
        self._last_uses: dict[int, Event] = {}
        self._free: list[tuple[torch.Tensor, Event]] = []
        self._slab_bytes = 0
        self._coming: list[tuple[int, Event]] = []
        self._leaving: tuple[Event, list[torch.Tensor]] | None = None
        self._staging: dict[int, list[Buffer]] = {}
        self._plan: list[tuple[int, ...]] = []
        self._position = 0

    @property
    def pages(self) -> list[Page]:
        """The host's pages."""
        return self.host.pages

    @property
    def memory_bytes(self) -> int:
        """Host memory that pages take now, with what is kept for gradients on their way down."""
        held = sum(page.grads.num_bytes for page in self.pages)
        staged = sum(buffer.num_bytes for buffers in self._staging.values() for buffer in buffers)
        return self.host.memory_bytes + max(0, staged - held)

    def start(self) -> None:
        """As the streamer's; what it has by now is pinned."""
        self._pin()
        self.host.start()

    def configure(self, pool_bytes: int, grad_bytes: int, resident: frozenset[int]) -> None:
        """As the streamer's."""
        self.host.configure(pool_bytes, grad_bytes, resident)
        self._pin()

    def _pin(self) -> None:
        for buffer in self.host.buffers():
            self.link.pin(buffer)

    # --- called by the compute threads ------------------------------------------------------------------------------

    def acquire(self, indices: Sequence[int], cause: str) -> None:
        """Hold pages on the device: work that the computation is given from now on finds them there."""
        for index in indices:
            self._holds[index] = self._holds.get(index, 0) + 1
        # In the midst of a forward: its modes must not see the copies, nor may inference mode make the slabs its own.
        with torch.inference_mode(False), torch._C.DisableTorchFunction():
            self._bring(indices, cause)

    def _bring(self, indices: Sequence[int], cause: str) -> None:
        self._settle(wait=False)
        missing = [index for index in indices if index not in self._slabs]
        if missing:
            if not all(self.pages[index].ready for index in missing):
                self._settle(wait=True)  # so that the host may use their room
            self.host.acquire(missing, cause)
            for index in missing:
                self._upload(index, -1)
        for index in indices:
            self.link.follow(self._arrivals[index])
            if index not in self._bound:
                self._bound.add(index)
                self._bind(index, param_views(self.pages[index].spec, self._slabs[index]))
        self._prefetch()

    def release(self, indices: Sequence[int]) -> None:
        """Give up a hold; the page may leave the device once the computation is through with it."""
        for index in indices:
            self._holds[index] -= 1
            assert self._holds[index] >= 0
            if not self._holds[index]:
                self._last_uses[index] = self.link.mark()

    def slab(self, index: int) -> torch.Tensor:
        """The bytes of a page that is held."""
        return self._slabs[index]

    def plan(self, accesses: Sequence[tuple[int, ...]]) -> None:
        """As the streamer's."""
        self._plan = list(accesses)
        self._position = 0
        self.host.plan(accesses)

    def advance(self, position: int) -> None:
        """As the streamer's."""
        self._position = position or len(self._plan)
        self.host.advance(position)

    def stash(self, index: int, grads: Mapping[int, torch.Tensor]) -> None:
        """Take the gradients of a page from the device; their memory there is free when they are copied."""
        if not grads:
            self.host.stash(index, {})
            return
        if self._leaving is not None:
            self._leaving[0].synchronize()  # or gradients would gather on the device
        spec = self.pages[index].spec
        views = param_views(spec, self._stage(spec.param_bytes).tensor)
        event = self.link.download([(views[number], grad) for number, grad in grads.items()])
        self.copied_down_bytes += sum(grad.nbytes for grad in grads.values())
        self._leaving = event, list(grads.values())
        self.host.stash(index, {number: views[number] for number in grads}, event)

    def take_gradients(self, index: int) -> dict[int, torch.Tensor]:
        """Give back the gradients of a page, on the device."""
        grads = self.host.take_gradients(index)
        return {number: grad.to(self.link.device, copy=True) for number, grad in grads.items()}

    def drop_gradients(self) -> None:
        """As the streamer's."""
        self.host.drop_gradients()

    def issue(self, ticket: Ticket) -> None:
        """As the streamer's; what is on the device of the pages that will change is stale from now on."""
        self._settle(wait=True)
        for page in self.pages:
            if page.grads.present and page.spec.index in self._slabs:
                self._evict(page.spec.index)
        self.host.issue(ticket)

    def close(self) -> None:
        """As the streamer's; parameters that only memory holds are views of host memory afterwards."""
        self._settle(wait=True)
        self._holds.clear()  # of a step that was interrupted
        for index in list(self._slabs):
            self._evict(index)
        self._free.clear()
        self.host.close()
        for page in self.pages:
            if page.slab is not None:
                self._bind(page.spec.index, page.param_views())

    # --- pages on the device ----------------------------------------------------------------------------------------

    def _prefetch(self) -> None:
        """Copy up what comes next, as far as the host has it ready and it fits."""
        for distance, index in self._upcoming():
            if index in self._slabs:
                continue
            if not self._fits(index, distance) or not self.host.hold_if_ready(index):
                return
            self._upload(index, distance)

    def _upload(self, index: int, distance: int) -> None:
        """Copy up a page that is held on the host; it is let go there when it is copied."""
        source = self.pages[index].slab
        assert source is not None
        self.link.pin(source)
        slab, after = self._take(self.pages[index].spec.param_bytes, distance)
        event = self.link.upload(slab, source.tensor, after)
        self.copied_up_bytes += source.num_bytes
        self._slabs[index], self._arrivals[index] = slab, event
        self._last_uses[index] = event
        self._coming.append((index, event))

    def _settle(self, *, wait: bool) -> None:
        """Let go of what has been copied, or wait until all of it has."""
        coming, self._coming = self._coming, []
        for index, event in coming:
            if wait:
                event.synchronize()
            if event.query():
                self.host.release([index])
            else:
                self._coming.append((index, event))
        if self._leaving is not None and self._leaving[0].query():
            self._leaving = None

    def _take(self, num_bytes: int, distance: int) -> tuple[torch.Tensor, Event]:
        """A slab for a page that is used `distance` accesses away, and the moment from which it may be written."""
        victims = self._victims(distance)
        while True:
            same = next((n for n, (slab, _) in enumerate(self._free) if slab.numel() == num_bytes), None)
            needed = self._slab_bytes + (num_bytes if same is None else 0)
            if self.pool_bytes is None or needed <= self.pool_bytes:
                break
            spare = next((n for n in range(len(self._free)) if n != same), None)
            if spare is not None:
                self._slab_bytes -= self._free.pop(spare)[0].numel()
            elif victims:
                self._evict(victims.pop(0))
            else:
                break  # what is held at once is more than the pool
        if same is not None:
            return self._free.pop(same)
        self._slab_bytes += num_bytes
        slab = torch.empty(max(num_bytes, ALIGN_BYTES), dtype=torch.uint8, device=self.link.device)[:num_bytes]
        return slab, self.link.mark()

    def _evict(self, index: int) -> None:
        assert not self._holds.get(index)
        if index in self._bound:
            self._bound.discard(index)
            self._unbind(index)
        slab, last_use = self._slabs.pop(index), self._last_uses.pop(index)
        self.link.follow(self._arrivals.pop(index))  # a page that came for nothing
        if in_use(slab):
            self._slab_bytes -= slab.numel()  # somebody has a view of a parameter: the memory stays theirs
        else:
            self._free.append((slab, last_use))

    def _fits(self, index: int, distance: int) -> bool:
        """Whether a page can come in by evicting only pages that are used later than `distance`."""
        if self.pool_bytes is None:
            return True
        evictable = sum(self._slabs[victim].numel() for victim in self._victims(distance))
        free = sum(slab.numel() for slab, _ in self._free)
        return self._slab_bytes - free - evictable + self.pages[index].spec.param_bytes <= self.pool_bytes

    def _victims(self, distance: int) -> list[int]:
        """Pages that may leave for one that is used in `distance` accesses, the farthest first."""
        uses: dict[int, int] = {}
        for away, index in self._upcoming():
            uses.setdefault(index, away)
        never = len(self._plan) + 1
        later = [i for i in self._slabs if not self._holds.get(i) and uses.get(i, never) > distance]
        return sorted(later, key=lambda index: uses.get(index, never), reverse=True)

    def _upcoming(self) -> list[tuple[int, int]]:
        """The accesses to come, how far away each is and its pages; those of this step: the next has other values."""
        rest = self._plan[self._position :]
        return [(distance, index) for distance, access in enumerate(rest) for index in access]

    # --- gradients --------------------------------------------------------------------------------------------------

    def _stage(self, num_bytes: int) -> Buffer:
        """Pinned memory for the gradients of a page, of a page whose gradients nobody holds any more."""
        buffers = self._staging.setdefault(num_bytes, [])
        for buffer in buffers:
            if not in_use(buffer.tensor):
                return buffer
        buffers.append(Buffer(num_bytes))
        self.link.pin(buffers[-1])
        return buffers[-1]
