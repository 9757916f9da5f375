"""What is in memory of each page, and the buffers through which the rest passes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from openwafer.base.errors import StoreTimeout
from openwafer.streaming.files import Buffer
from openwafer.streaming.link import Event
from openwafer.streaming.page import PageSpec
from openwafer.streaming.store import StoredPage


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
    arrival: Event | None = None

    def wait(self) -> None:
        """Wait until a copy into the tensors, if there is one under way, is through."""
        if self.arrival is not None:
            self.arrival.synchronize()

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
        return param_views(self.spec, self.slab.tensor)


def param_views(spec: PageSpec, slab: torch.Tensor) -> list[torch.Tensor]:
    """The parameters of a page as views of its bytes."""
    flat = slab[: spec.numel * spec.dtype.itemsize].view(spec.dtype)
    return [flat[p.offset : p.offset + p.numel].view(p.shape) for p in spec.params]


def in_use(slab: torch.Tensor) -> bool:
    """Whether a tensor beside `slab` itself has its memory."""
    storage = slab.untyped_storage()
    own = 3 if slab._is_view() else 2  # the slab's, that of the tensor it was cut from, and `storage` here
    return torch._C._storage_Use_Count(storage._cdata) > own


class Ring:
    """A fixed number of chunk buffers; `take` waits until one is given back."""

    def __init__(self, num_bytes: int, count: int):
        self.buffers = [Buffer(num_bytes) for _ in range(count)]
        self.count = count
        self._free = list(self.buffers)
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
