"""The way between host memory and the memory of the device that computes.

A link copies both ways beside the computation, on streams that live as long as it does, and orders copies and
computation by events. `StreamLink` is an accelerator of torch; `HostLink` copies at once into separate memory of the
CPU, so that everything built on a link runs, and is tested, without a device.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from openwafer.base.errors import ConfigError
from openwafer.streaming.files import Buffer
from openwafer.streaming.update import OptimizerSpec, apply

log = logging.getLogger("openwafer")


class Event(Protocol):
    """A moment in the work of a device."""

    def query(self) -> bool:
        """Whether it has come."""
        ...

    def synchronize(self) -> None:
        """Wait until it has come."""
        ...


class Link(ABC):
    """Copies between the host and one device.

    Attributes:
        generators: the device's own random generators, which a model draws from without being told.
    """

    device: torch.device
    generators: Sequence[torch.Generator] = ()

    @abstractmethod
    def mark(self) -> Event:
        """All that the computation has been given so far."""

    @abstractmethod
    def follow(self, event: Event) -> None:
        """The computation goes on only after `event`."""

    @abstractmethod
    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        """Copy to the device once `after` has come; both must stay as they are until the event returned."""

    @abstractmethod
    def download(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Event:
        """Copy (to, from) pairs to the host after all that the computation has been given so far."""

    @abstractmethod
    def aside(self) -> AbstractContextManager[Any]:
        """Work of the thread within goes beside the computation, and is done at the end."""

    @abstractmethod
    def carry(self) -> Callable[[], AbstractContextManager[Any]]:
        """For another thread: to go on with the computation where the thread that calls this is."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Memory of the device that is free; None where that is no limit."""

    @abstractmethod
    def pin(self, buffer: Buffer) -> None:
        """Make copies from and to a buffer fast; once is enough."""

    def update(
        self,
        spec: OptimizerSpec,
        hyper: Mapping[str, Any],
        step: int,
        p: torch.Tensor,
        g: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        clip_coef: float | torch.Tensor | None = None,
        *,
        element: int = 0,
    ) -> None:
        """`update.apply` on the device: the tensors go up, are updated, and come back. The bits are the device's."""
        held = {"": p, **state}
        with self.aside():
            there = {name: tensor.to(self.device, non_blocking=True, copy=True) for name, tensor in held.items()}
            grad = g.to(self.device, non_blocking=True, copy=True)
            param = there.pop("")
            apply(spec, hyper, step, param, grad, there, clip_coef, element=element)
            p.copy_(param, non_blocking=True)
            for name, tensor in state.items():
                tensor.copy_(there[name], non_blocking=True)


class _Now:
    """A moment that has come."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class HostLink(Link):
    """Separate memory of the CPU in place of a device's; every copy is done when its call returns."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def mark(self) -> Event:
        return _Now()

    def follow(self, event: Event) -> None:
        event.synchronize()

    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        after.synchronize()
        target.copy_(source)
        return _Now()

    def download(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Event:
        for target, source in pairs:
            target.copy_(source)
        return _Now()

    def aside(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def carry(self) -> Callable[[], AbstractContextManager[Any]]:
        return contextlib.nullcontext

    def synchronize(self) -> None:
        pass

    def free_bytes(self) -> int | None:
        return None

    def pin(self, buffer: Buffer) -> None:
        pass


class StreamLink(Link):
    """An accelerator: one stream for copies to it, one for copies from it, one for optimizer updates."""

    def __init__(self, device: torch.device):
        self.device = device
        module = torch.get_device_module(device)
        self._memory_info = module.mem_get_info
        torch.empty(0, device=device)  # the device's context, and with it its generators
        self.generators = tuple(getattr(module, "default_generators", ()))[device.index : device.index + 1]
        self._up, self._down, self._side = (torch.Stream(device=device) for _ in range(3))
        self._pinned: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self._pins = device.type == "cuda"
        self._lock = threading.Lock()

    def mark(self) -> Event:
        return torch.accelerator.current_stream(self.device).record_event()

    def follow(self, event: Event) -> None:
        torch.accelerator.current_stream(self.device).wait_event(event)  # type: ignore[arg-type]

    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        self._up.wait_event(after)  # type: ignore[arg-type]
        with _on(self._up):
            target.copy_(source, non_blocking=True)
        return self._up.record_event()

    def download(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Event:
        self._down.wait_event(self.mark())  # type: ignore[arg-type]
        with _on(self._down):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self._down.record_event()

    @contextlib.contextmanager
    def aside(self):
        with _on(self._side):
            yield
        self._side.synchronize()

    def carry(self) -> Callable[[], AbstractContextManager[Any]]:
        stream = torch.accelerator.current_stream(self.device)
        return lambda: _on(stream)

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self.device)

    def free_bytes(self) -> int | None:
        return self._memory_info(self.device)[0]

    def pin(self, buffer: Buffer) -> None:
        """Register a buffer with the driver: its exact size, where torch's own pinned memory rounds up to a power of 2.

        If the driver refuses, that is logged once and copies go through the driver's own buffers, slower.
        """
        with self._lock:
            if not self._pins or not buffer.num_bytes or buffer in self._pinned:
                return
            runtime: Any = torch.cuda.cudart()
            error = runtime.cudaHostRegister(buffer.tensor.data_ptr(), buffer.num_bytes, 0)
            if int(error):
                self._pins = False
                log.warning(
                    "the driver does not pin memory (cudaHostRegister of %d bytes: error %d; see `ulimit -l`): copies "
                    "to and from the device are slower and do not overlap with computing",
                    buffer.num_bytes,
                    int(error),
                )
                with contextlib.suppress(RuntimeError):  # the next launch would report the driver's last error
                    torch.zeros(1, device=self.device)
                return
            self._pinned.add(buffer)
            release = weakref.finalize(buffer, runtime.cudaHostUnregister, buffer.tensor.data_ptr())
            release.atexit = False  # the driver may be gone by then


@contextlib.contextmanager
def _on(stream: torch.Stream):
    """Give the work of this thread to a stream."""
    before = torch.accelerator.current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)


def open_link(device: str | torch.device | Link | None) -> Link | None:
    """The link to a device; None for the CPU, whose memory is the host's.

    Raises:
        ConfigError: there is no such device here.
    """
    if device is None or isinstance(device, Link):
        return device
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    names = ["cpu"] if here is None else ["cpu", "auto", here.type]
    allowed = f"allowed here: {', '.join(map(repr, names))}" + ("" if here else " (this machine has no accelerator)")
    try:
        wanted = here if device == "auto" else torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or (wanted.type != "cpu" and (here is None or wanted.type != here.type)):
        raise ConfigError(f"device={str(device)!r} is no device to compute on; {allowed}")
    if wanted.type == "cpu":
        return None
    index = torch.accelerator.current_device_index() if wanted.index is None else wanted.index
    if index >= torch.accelerator.device_count():
        raise ConfigError(f"device={str(device)!r}: this machine has {torch.accelerator.device_count()} of them")
    return _link_to(torch.device(wanted.type, index))


@functools.cache
def _link_to(device: torch.device) -> StreamLink:
    """One link a device: each new stream would take a memory pool of its own."""
    return StreamLink(device)
