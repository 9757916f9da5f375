"""A link that puts everything off: a copy happens when somebody waits for it, and until then its target is NaN."""

import threading
import weakref
from collections.abc import Callable, Sequence

import torch

from openwafer.streaming.link import Event, HostLink


class Later:
    """The moment at which a copy is done; a copy of a stream is done after those before it."""

    def __init__(self, stream: list["Later"], lock: threading.RLock, copy: Callable[[], None]):
        self.stream, self.lock, self.copy = stream, lock, copy
        self.done = False
        stream.append(self)

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        with self.lock:
            while not self.done:
                first = self.stream.pop(0)
                first.copy()
                first.done = True


class LazyLink(HostLink):
    """Fails where a wait is missing, which a device does only now and then."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        super().__init__()
        self.generators = generators
        self.up: list[Later] = []
        self.down: list[Later] = []
        self.num_copies = 0
        self._lock = threading.RLock()

    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        after.synchronize()
        target.fill_(255)
        self.num_copies += 1

        def copy() -> None:
            target.copy_(source)

        return Later(self.up, self._lock, copy)

    def download(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Event:
        waiting = [(target, weakref.ref(source), source._version) for target, source in pairs]
        for target, _ in pairs:
            target.fill_(float("nan") if target.is_floating_point() else 255)
        self.num_copies += 1

        def copy() -> None:
            for target, reference, version in waiting:
                source = reference()
                assert source is not None, "a gradient's memory was given back before it was copied"
                assert source._version == version, "a gradient was changed before it was copied"
                target.copy_(source)

        return Later(self.down, self._lock, copy)
