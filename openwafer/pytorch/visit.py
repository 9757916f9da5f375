"""One call of a layer by one micro-batch: what autograd keeps of it, and how it comes back.

The graph of the model is the plain one; only the tensors it saves pass through here. A visit that recomputes drops
them and runs the layer's own forward again when the backward asks for the first of them, stopping at the last one
needed. A visit that keeps holds them, except for views of parameters, which are only noted: their memory is the
page's. Random state, autocast and buffers are put back for the recomputation as they were in the forward.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from openwafer.base.errors import RefusedError
from openwafer.pytorch.random_state import RandomState
from openwafer.pytorch.side_state import Snapshot, write

if TYPE_CHECKING:
    from openwafer.pytorch.engine import Engine
    from openwafer.pytorch.partition import Layer


KEPT_BUFFER_BYTES = 1 << 16


class _Enough(BaseException):
    """Stops a recomputation once every saved tensor is back."""


@dataclass(frozen=True)
class SlabView:
    """A saved tensor that is a view of a page's parameters, as they are after so many updates."""

    page: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    updates: int


class Kept:
    """A saved tensor that is held; that it may not change is checked here, as torch does not under hooks."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self.version = tensor._version

    def tensor_as_saved(self) -> torch.Tensor:
        """The tensor.

        Raises:
            RuntimeError: it was changed in place since.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{self.tensor.dtype} {tuple(self.tensor.shape)} is at version {self.tensor._version}, "
                f"expected version {self.version}"
            )
        return self.tensor


class Autocast:
    """The autocast state of a thread, to be entered again."""

    def __init__(self, device: str):
        self.device = device
        self.enabled = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)
        self.cache = torch.is_autocast_cache_enabled()

    def __call__(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=self.cache)


class KeepingVisit:
    """Keeps what autograd saves."""

    def __init__(self, engine: Engine, layer: Layer, call: Callable, args: tuple, kwargs: dict):
        del call, args, kwargs
        self.engine = engine
        self.layer = layer

    def left(self, before: dict[int, torch.Tensor], changed: set[int]) -> None:
        """The layer has returned."""

    def pack(self, tensor: torch.Tensor) -> object:
        view = self.engine.slab_view(tensor)
        if view is None:
            self.engine.note_kept(self.layer, tensor)
        return Kept(tensor) if view is None else view

    def unpack(self, packed: Any) -> torch.Tensor:
        self.engine.enter_backward(self.layer)
        return self.engine.view_slab(packed) if isinstance(packed, SlabView) else packed.tensor_as_saved()


class RecomputingVisit:
    """Drops what autograd saves and recomputes it from the layer's inputs."""

    def __init__(self, engine: Engine, layer: Layer, call: Callable, args: tuple, kwargs: dict):
        self.engine = engine
        self.layer = layer
        self.call, self.args, self.kwargs = call, args, kwargs
        self.updates = engine.updates
        self.autocast = Autocast(engine.device_type)
        # Containers and objects among the arguments go on changing: a list that grows, a cache.
        self.arguments = Snapshot([args, kwargs], modules=False, copy=False)
        self.inputs = [(t, t._version) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.side = engine.side.mark()
        self.modes = [(module, module.training) for module in layer.module.modules()]
        self.random: RandomState | None = RandomState(engine.generators)
        self.buffers: dict[int, torch.Tensor] = {}
        self.shapes: list[tuple[torch.Size, torch.dtype]] = []
        self.saved: dict[int, Kept] | None = None

    def left(self, before: dict[int, torch.Tensor], changed: set[int]) -> None:
        """The layer has returned; `before` are its buffers as they were, `changed` those that it has changed."""
        self._require_unchanged("changes its input in place")
        self.buffers = {k: v for k, v in before.items() if k in changed or v.nbytes <= KEPT_BUFFER_BYTES}
        assert self.random is not None
        if self.random.is_now():
            self.random = None

    def _require_unchanged(self, what: str) -> None:
        if any(tensor._version != version for tensor, version in self.inputs):
            raise RefusedError(
                f"layer {self.layer.name!r} {what}, so it cannot be run again from it. Make the operation out of place "
                f"(inplace=False, x = x + y), or let the layer keep its activations: keep=[{self.layer.name!r}]"
            )

    def pack(self, tensor: torch.Tensor) -> int:
        self.shapes.append((tensor.shape, tensor.dtype))
        return len(self.shapes) - 1

    def unpack(self, packed: int) -> torch.Tensor:
        self.engine.enter_backward(self.layer)
        if self.saved is None or packed not in self.saved:
            self._recompute()
        assert self.saved is not None
        return self.saved.pop(packed).tensor_as_saved()

    def _recompute(self) -> None:
        self.engine.require_same_step(self.updates)
        self._require_unchanged("was given a tensor that is changed in place afterwards")
        saved: dict[int, Kept] = {}

        def keep(tensor: torch.Tensor) -> None:
            number = len(saved)
            if number >= len(self.shapes) or self.shapes[number] != (tensor.shape, tensor.dtype):
                raise self._differs(f"tensor {number} has shape {tuple(tensor.shape)} and {tensor.dtype}")
            saved[number] = Kept(tensor.detach())
            if len(saved) == len(self.shapes):
                raise _Enough

        def never(_: object) -> torch.Tensor:
            raise AssertionError("a recomputed graph is never run backward")

        with contextlib.ExitStack() as stack:
            stack.enter_context(self._arguments_put_back())
            memo: dict[int, torch.Tensor] = {}
            args, kwargs = _detached(self.args, memo), _detached(self.kwargs, memo)
            stack.enter_context(self.engine.side.put_back(self.side))
            stack.enter_context(self._modes_put_back())
            stack.enter_context(self._buffers_put_back())
            if self.random is not None:
                stack.enter_context(self.random.put_back())
            stack.callback(torch.clear_autocast_cache)
            stack.enter_context(self.engine.inside(self.layer))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.autocast())
            stack.enter_context(saved_tensors_hooks(keep, never))
            with contextlib.suppress(_Enough):
                self.call(*args, **kwargs)
        if len(saved) != len(self.shapes):
            raise self._differs(f"{len(saved)} tensors were saved")
        self.saved = saved

    @contextlib.contextmanager
    def _arguments_put_back(self) -> Iterator[None]:
        now = Snapshot(self.arguments.objects.values(), modules=False, copy=False)
        for value in self.arguments.changed():
            if isinstance(value, torch.Tensor):
                self._require_unchanged("was given a tensor that is changed in place afterwards")
            else:
                write(value, self.arguments.contents[id(value)])
        try:
            yield
        finally:
            for value in now.changed():
                if not isinstance(value, torch.Tensor):
                    write(value, now.contents[id(value)])

    @contextlib.contextmanager
    def _modes_put_back(self) -> Iterator[None]:
        """As `train()` and `eval()` were."""
        now = [(module, module.training) for module, training in self.modes if module.training != training]
        for module, _ in now:
            module.training = not module.training
        try:
            yield
        finally:
            for module, training in now:
                module.training = training

    @contextlib.contextmanager
    def _buffers_put_back(self) -> Iterator[None]:
        engine = self.engine
        later = {key: engine.buffer(key).detach().clone() for key in self.buffers}
        self._put_buffers(self.buffers)
        try:
            yield
        finally:
            self._put_buffers(later)

    def _put_buffers(self, values: dict[int, torch.Tensor]) -> None:
        with torch.no_grad():
            for key, value in values.items():
                if not torch.equal(self.engine.buffer(key), value):
                    self.engine.buffer(key).data.copy_(value)  # no change that autograd should see

    def _differs(self, how: str) -> RefusedError:
        return RefusedError(
            f"layer {self.layer.name!r} did something else when it was run again for the backward: {how}, "
            f"unlike the first time ({len(self.shapes)} tensors). It depends on something that changes outside its "
            f"inputs. Let it keep its activations: keep=[{self.layer.name!r}]"
        )


def _detached(value: Any, memo: dict[int, torch.Tensor]) -> Any:
    """Arguments cut off from the graph; a tensor that is given twice stays one tensor."""
    if isinstance(value, torch.Tensor):
        if id(value) not in memo:
            memo[id(value)] = value if isinstance(value, nn.Parameter) else _leaf(value)
        return memo[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_detached(part, memo) for part in value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _detached(part, memo)) for key, part in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_detached(part, memo) for part in value))
    return value


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
