"""One call of a layer by one micro-batch: what autograd keeps of it, and how it comes back.

The graph of the model is the plain one; only the tensors it saves pass through here. A visit that recomputes drops
them and runs the layer's own forward again when the backward asks for the first of them, stopping at the last one
needed. A visit that keeps holds them, except for views of parameters, which are only noted: their memory is the
page's. Random state, autocast and buffers are put back for the recomputation as they were in the forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from openwafer.base.errors import RefusedError

if TYPE_CHECKING:
    from openwafer.pytorch.engine import Engine
    from openwafer.pytorch.partition import Layer


class _Enough(BaseException):
    """Stops a recomputation once every saved tensor is back."""


@dataclass(frozen=True)
class SlabView:
    """A saved tensor that is a view of a page's parameters."""

    page: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


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

    def __init__(self, engine: Engine, layer: Layer):
        self.engine = engine
        self.layer = layer

    def pack(self, tensor: torch.Tensor) -> object:
        view = self.engine.slab_view(tensor)
        if view is None:
            self.engine.note_kept(self.layer, tensor)
        return tensor if view is None else view

    def unpack(self, packed: Any) -> torch.Tensor:
        self.engine.enter_backward(self.layer)
        return self.engine.view_slab(packed) if isinstance(packed, SlabView) else packed


class RecomputingVisit:
    """Drops what autograd saves and recomputes it from the layer's inputs."""

    def __init__(self, engine: Engine, layer: Layer, call: Callable, args: tuple, kwargs: dict):
        self.engine = engine
        self.layer = layer
        self.call, self.args, self.kwargs = call, args, kwargs
        self.autocast = Autocast(engine.device_type)
        self.random: torch.Tensor | None = None
        self.buffers: dict[int, torch.Tensor] = {}
        self.shapes: list[tuple[torch.Size, torch.dtype]] = []
        self.saved: dict[int, torch.Tensor] | None = None

    def pack(self, tensor: torch.Tensor) -> int:
        self.shapes.append((tensor.shape, tensor.dtype))
        return len(self.shapes) - 1

    def unpack(self, packed: int) -> torch.Tensor:
        self.engine.enter_backward(self.layer)
        if self.saved is None or packed not in self.saved:
            self._recompute()
        assert self.saved is not None
        return self.saved.pop(packed)

    def _recompute(self) -> None:
        saved: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> None:
            number = len(saved)
            if number >= len(self.shapes) or self.shapes[number] != (tensor.shape, tensor.dtype):
                raise self._differs(f"tensor {number} has shape {tuple(tensor.shape)} and {tensor.dtype}")
            saved[number] = tensor.detach()
            if len(saved) == len(self.shapes):
                raise _Enough

        def never(_: object) -> torch.Tensor:
            raise AssertionError("a recomputed graph is never run backward")

        args = tree_map_only(torch.Tensor, _detached, self.args)
        kwargs = tree_map_only(torch.Tensor, _detached, self.kwargs)
        random = torch.get_rng_state() if self.random is not None else None
        with torch.no_grad():
            later = {key: self.engine.buffer(key).clone() for key in self.buffers}
            self._put_buffers(self.buffers)
        try:
            if self.random is not None:
                torch.set_rng_state(self.random)
            with self.engine.inside(self.layer), torch.enable_grad(), self.autocast(), saved_tensors_hooks(keep, never):
                self.call(*args, **kwargs)
        except _Enough:
            pass
        finally:
            if random is not None:
                torch.set_rng_state(random)
            self._put_buffers(later)
            torch.clear_autocast_cache()
        if len(saved) != len(self.shapes):
            raise self._differs(f"{len(saved)} tensors were saved")
        self.saved = saved

    def _put_buffers(self, values: dict[int, torch.Tensor]) -> None:
        with torch.no_grad():
            for key, value in values.items():
                self.engine.buffer(key).copy_(value)

    def _differs(self, how: str) -> RefusedError:
        return RefusedError(
            f"layer {self.layer.name!r} did something else when it was run again for the backward: {how}, "
            f"unlike the first time ({len(self.shapes)} tensors). It depends on something that changes outside its "
            f"inputs. Let it keep its activations: keep=[{self.layer.name!r}]"
        )


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
