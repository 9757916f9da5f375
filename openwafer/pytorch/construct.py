"""`with ow.init(store): model = MyModel()`: parameters are created in the store, not in memory.

The user's own constructors run, with the random numbers and the arithmetic of plain construction. A parameter that is
registered stays in memory while it is worked on; when more than `memory` is in use, those used least recently go to
a file of their own and come back when an operation touches them. Nothing is fused, reordered or skipped. Only where
the store holds a committed state already, which `compile` will put in their place, are values that leave not kept.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from openwafer.base.errors import ConfigError
from openwafer.base.units import parse_bytes
from openwafer.streaming import heap
from openwafer.streaming.files import store_error
from openwafer.streaming.store import Store

DEFAULT_MEMORY = "512MiB"


class Nursery:
    """The files of parameters that are not yet in pages; hangs on the model's parameters until `compile`."""

    def __init__(self, store: Store, memory_bytes: int):
        self.store = store
        self.memory_bytes = memory_bytes
        self.folder = store.root / "init"
        self.keeps = store.manifest is None
        self._loaded: OrderedDict[int, weakref.ref[nn.Parameter]] = OrderedDict()
        self._files: dict[int, tuple[Path, torch.Size]] = {}
        self._bytes: dict[int, int] = {}
        self._count = 0
        self._remove_stale()

    def _remove_stale(self) -> None:
        """Remove what a process that died while it built a model has left; we hold the lock of the store."""
        for path in self.folder.glob("*.bin"):
            if not path.name.startswith(f"{os.getpid()}-"):
                path.unlink(missing_ok=True)

    def register(self, param: nn.Parameter) -> None:
        """A module has registered a parameter."""
        if id(param) in self._bytes or param.device.type == "meta":
            return
        key = id(param)
        weakref.finalize(param, self._forget, key)
        param._openwafer_nursery = self  # type: ignore[attr-defined]
        self._loaded[key] = weakref.ref(param)
        self._bytes[key] = param.numel() * param.element_size()
        self._make_room(key, self.memory_bytes)

    def use(self, param: nn.Parameter) -> None:
        """An operation is about to touch a parameter."""
        key = id(param)
        if key not in self._bytes:
            return
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return
        param.data = self.load(param)
        self._loaded[key] = weakref.ref(param)
        self._make_room(key, self.memory_bytes)

    def load(self, param: nn.Parameter) -> torch.Tensor:
        """The values of a parameter, read from its file if it is not in memory."""
        key = id(param)
        if key in self._loaded:
            return param.data
        data = torch.empty(self._files[key][1], dtype=param.dtype)
        self.load_into(data.view(-1), param)
        return data

    def load_into(self, flat: torch.Tensor, param: nn.Parameter) -> None:
        """Put the values of a parameter into a vector, which must be contiguous."""
        key = id(param)
        if key in self._loaded:
            flat.copy_(param.data.reshape(-1))
            return
        if not self.keeps:
            flat.fill_(float("nan"))
            return
        path = self._files[key][0]
        view = flat.view(torch.uint8).numpy().data
        try:
            with open(path, "rb") as file:
                if file.readinto(view) != len(view):
                    raise OSError(5, f"{path} is truncated")
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise store_error(error, f"reading {path}") from error

    def lend(self, num_bytes: int) -> None:
        """Leave so much of the memory to whoever moves the parameters on."""
        self._make_room(None, max(0, self.memory_bytes - num_bytes))

    def release(self, param: nn.Parameter) -> None:
        """A parameter has moved into its page."""
        self._forget(id(param))

    def clear(self) -> None:
        """Remove the folder once every parameter has moved."""
        for path, _ in self._files.values():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _forget(self, key: int) -> None:
        self._loaded.pop(key, None)
        self._bytes.pop(key, None)
        entry = self._files.pop(key, None)
        if entry is not None:
            entry[0].unlink(missing_ok=True)

    def _make_room(self, current: int | None, limit_bytes: int) -> None:
        used = sum(self._bytes[key] for key in self._loaded)
        before = used
        for key in list(self._loaded):
            if used <= limit_bytes:
                break
            param = self._loaded[key]()
            if key == current or param is None or not self._may_leave(param):
                continue
            self._write(key, param)
            param.data = torch.full((1,), float("nan"), dtype=param.dtype).expand(param.shape)
            del self._loaded[key]
            used -= self._bytes[key]
        if used < before:
            heap.give_back()

    @staticmethod
    def _may_leave(param: nn.Parameter) -> bool:
        """Not while somebody else has a view of the memory (`weight.data` kept in a variable), and not integers."""
        if not param.is_floating_point() or param.dim() == 0 or not param.data.is_contiguous():
            return False
        storage = param.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata) <= 2  # the parameter's own, and `storage` here

    def _write(self, key: int, param: nn.Parameter) -> None:
        if key not in self._files:
            # A model may be built in several parts, each under an `init` of its own.
            self._files[key] = (self.folder / f"{os.getpid()}-{id(self)}-{self._count:06d}.bin", param.shape)
            self._count += 1
        if not self.keeps:
            return
        path = self._files[key][0]
        try:
            self.folder.mkdir(exist_ok=True)
            with open(path, "wb") as file:
                file.write(param.data.view(-1).view(torch.uint8).numpy().data)
                file.flush()
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise store_error(error, f"writing {path} while the model is built") from error


class _Construction(TorchFunctionMode):
    """Brings parameters back before any operation on them."""

    def __init__(self, nursery: Nursery):
        super().__init__()
        self.nursery = nursery

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if isinstance(value, nn.Parameter):
                self.nursery.use(value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    if isinstance(item, nn.Parameter):
                        self.nursery.use(item)
        return func(*args, **kwargs)


@contextmanager
def init(store: Store | str | os.PathLike[str], *, memory: str | int = DEFAULT_MEMORY) -> Iterator[Store]:
    """Create parameters in a store as modules make them; the model is then given to `compile`.

    Args:
        store: a folder, or a `Store`; `compile` uses the same one.
        memory: how much of the parameters may be in memory while the model is built.

    Raises:
        ConfigError: the store is in memory.
    """
    owner = store if isinstance(store, Store) else Store(store)
    if owner.path is None:
        raise ConfigError("init needs a store on disk: ow.init('path/of/the/run')")
    nursery = Nursery(owner, parse_bytes(memory))
    original = nn.Module.register_parameter

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(self, name, param)
        if param is not None:
            nursery.register(param)

    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        with _Construction(nursery):
            yield owner
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def nursery_of(param: nn.Parameter) -> Nursery | None:
    """Where the values of a parameter are, if it was made under `init`."""
    return getattr(param, "_openwafer_nursery", None)
