"""Stands between a model and the streamer: sees every call of a layer, every use of a parameter, every gradient.

The modules are the user's; a layer's class is replaced by a subclass whose call is a border. Parameters that are not
in memory have their shape and dtype but hold a single NaN, so that a use that escaped notice cannot go unnoticed.
Gradients are taken from `.grad` as soon as the layer is left, and put back before more is added to them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from openwafer.base.errors import RefusedError
from openwafer.pytorch.partition import Layer, Partition
from openwafer.pytorch.profile import Recorder
from openwafer.pytorch.schedule import Abandoned, Baton
from openwafer.pytorch.visit import KeepingVisit, RecomputingVisit, SlabView
from openwafer.streaming.heap import Heap
from openwafer.streaming.streamer import Streamer

# Names of tensor methods and attributes that tell about a tensor without reading it.
METADATA = frozenset(
    "size dim numel nelement ndimension stride is_floating_point is_complex element_size is_contiguous storage_offset "
    "requires_grad_ register_hook register_post_accumulate_grad_hook __len__ __hash__ __set__ __delete__ "
    "is_signed is_inference type_as_metadata has_names get_device".split()
)
READING_ATTRIBUTES = frozenset("data T mT H mH real imag".split())


class Pass(threading.local):
    """What the current thread is doing: which micro-batch, in which layer's call."""

    index = 0
    visiting: Layer | None = None


class Inexact(BaseException):
    """The layer-major order was found to differ from the plain one; the step is run again in the plain order."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Engine:
    """Runs one model over one streamer.

    Args:
        precision: "bf16" runs forwards under autocast, "fp32" leaves them as they are.
        keep: layers that keep their activations (by index in the partition).
    """

    def __init__(self, model: nn.Module, cut: Partition, precision: str, device_type: str = "cpu"):
        self.model = model
        self.cut = cut
        self.precision = precision
        self.device_type = device_type
        self.streamer: Streamer = None  # type: ignore[assignment]  # set by attach
        self.keep: set[int] = set()
        self.baton: Baton | None = None
        self.recorder: Recorder | None = None
        self.norms: dict[tuple[int, int], torch.Tensor] = {}
        self.local = Pass()
        self.page_of = {id(p): (n, i) for n, page in enumerate(cut.pages) for i, (_, p) in enumerate(page.params)}
        self.number = {id(layer): n for n, layer in enumerate(cut.layers)}
        self.strays = [Layer(page.name, model, (n,)) for n, page in enumerate(cut.pages)]
        self.trace: list[tuple[int, ...]] = []
        self.kept_bytes: dict[str, int] = {}
        self.visited: list[str] = []
        self._current: Layer | None = None
        self._extra: list[int] = []
        self._held: set[int] = set()
        self._arrived: set[int] = set()
        self._last_index: dict[int, int] = {}
        self._slabs: dict[int, int] = {}
        self._cycle: str | None = None
        self._cursor = 0
        self._plans: dict[str, list[tuple[int, ...]]] = {}
        self._in_backward = False
        self._final_callback = False
        self._handles: list[Any] = []
        self._classes: list[tuple[nn.Module, type]] = []
        self._buffers: dict[int, torch.Tensor] = {}
        self._layer_buffers: list[tuple[int, ...]] = []
        self._mutated: set[int] = set()
        self._buffer_log: dict[int, torch.Tensor] | None = None
        self._outside: list[int] = []
        self._poison: dict[torch.dtype, torch.Tensor] = {}
        self.heap = Heap()
        self.growth_bytes: dict[str, int] = {}

    # --- attaching ------------------------------------------------------------------------------------------------

    def attach(self, streamer: Streamer) -> None:
        """Put the borders into the model."""
        self.streamer = streamer
        forward = [layer.pages for layer in self.cut.layers]
        self._plans = {"train": forward + forward[::-1], "eval": forward}
        for page in self.cut.pages:
            for _, param in page.params:
                if param.requires_grad:
                    self._watch(param)
        left = [tensor for _, tensor in self.cut.left]
        for tensor in [*left, *self.model.buffers()]:
            self._buffers[id(tensor)] = tensor
        for layer in self.cut.layers:
            ids = {id(t) for t in [*layer.module.buffers(), *layer.module.parameters()]}
            self._layer_buffers.append(tuple(key for key in self._buffers if key in ids))
        for layer in self.cut.layers:
            self._wrap(layer.module, lambda call, args, kwargs, layer=layer: self._visit(layer, call, args, kwargs))
        self._wrap(self.model, self._root)

    def detach(self) -> None:
        """Take the borders out again."""
        for handle in self._handles:
            handle.remove()
        for module, original in reversed(self._classes):
            object.__setattr__(module, "__class__", original)
        self._handles, self._classes = [], []

    def _watch(self, param: nn.Parameter) -> None:
        page, _ = self.page_of[id(param)]

        def before(_: torch.Tensor) -> None:
            self._put_gradients_back(page)

        def after(param: torch.Tensor) -> None:
            if self.baton is not None:
                if self.local.index < self._last_index.get(page, 0):
                    raise Inexact(f"micro-batches reach {self.cut.pages[page].name} in another order than in a loop")
                self._last_index[page] = self.local.index
            self._arrived.add(page)

        self._handles.append(param.register_hook(before))
        self._handles.append(param.register_post_accumulate_grad_hook(after))

    def _wrap(self, module: nn.Module, around: Callable[[Callable, tuple, dict], Any]) -> None:
        """Give a module a class of its own, whose call goes through `around`."""
        original = type(module)

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return around(lambda *a, **k: original.__call__(self, *a, **k), args, kwargs)

        wrapped = type(original.__name__, (original,), {"__call__": call, "__module__": original.__module__})
        object.__setattr__(module, "__class__", wrapped)
        self._classes.append((module, original))

    # --- memory under the parameters --------------------------------------------------------------------------------

    def bind(self, page: int, views: list[torch.Tensor]) -> None:
        """A page has come: its parameters are views of its slab."""
        if views:
            self._slabs[views[0].untyped_storage().data_ptr()] = page
        for (_, param), view in zip(self.cut.pages[page].params, views, strict=True):
            param.data = view

    def unbind(self, page: int) -> None:
        """A page leaves: its parameters keep their shape and hold NaN."""
        for _, param in self.cut.pages[page].params:
            self._slabs.pop(param.untyped_storage().data_ptr(), None)
            param.data = self.poison(param)

    def poison(self, param: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape without memory of its own, NaN everywhere."""
        if param.dtype not in self._poison:
            self._poison[param.dtype] = torch.full((1,), float("nan"), dtype=param.dtype)
        return self._poison[param.dtype].expand(param.shape) if param.dim() else self._poison[param.dtype][0]

    def slab_view(self, tensor: torch.Tensor) -> SlabView | None:
        """What to note of a saved tensor if its memory is a page's."""
        page = self._slabs.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
        if page is None:
            return None
        return SlabView(page, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())

    def view_slab(self, view: SlabView) -> torch.Tensor:
        """The saved tensor again; its page is fetched if it is not held."""
        if view.page not in self._held:
            self._touch(view.page)
        slab = self.streamer.pages[view.page].slab
        assert slab is not None
        return torch.as_strided(slab.tensor.view(view.dtype), view.size, view.stride, view.offset)

    def buffer(self, key: int) -> torch.Tensor:
        return self._buffers[key]

    # --- borders ----------------------------------------------------------------------------------------------------

    def enter(self, layer: Layer) -> None:
        """Cross the border of a layer: its pages are in memory and up to date on return."""
        if self._current is layer:
            return
        if self.baton is not None:
            self.baton.reach(self.local.index, layer)
            if self._current is layer:
                return
        self.heap.tend(self.growth_bytes.get(layer.name, 0))
        self._leave(layer.pages)
        self._follow(layer.pages)
        self._current = layer
        pages = [page for page in layer.pages if page not in self._held]
        self.streamer.acquire(pages, "backward" if self._in_backward else "forward")
        self._held.update(pages)
        self._extra = pages

    def enter_backward(self, layer: Layer) -> None:
        """Cross a border in the backward."""
        if not self._final_callback and self.baton is None:
            self._final_callback = True
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)
        self._in_backward = True
        self.enter(layer)

    def _backward_ended(self) -> None:
        self._final_callback = False
        self.rest()

    def rest(self) -> None:
        """Leave whatever layer is current and let go of everything; gradients go to the streamer."""
        self._in_backward = False
        self._leave(())
        held = list(self._held)
        self._held.clear()
        self.streamer.release(held)
        for page in list(self._arrived):
            self._stash(page)
        self._arrived.clear()
        torch.clear_autocast_cache()

    def _leave(self, following: tuple[int, ...]) -> None:
        for page in [p for p in self._arrived if p not in following and p not in self.cut.shared]:
            self._stash(page)
            self._arrived.discard(page)
        self._held.difference_update(self._extra)
        self.streamer.release(self._extra)
        self._extra = []
        self._current = None

    def _touch(self, page: int) -> None:
        """A parameter is used that no border announced."""
        if self.local.visiting is None:
            self.enter(self.strays[page])
            return
        self.streamer.acquire([page], "stray")
        self._held.add(page)
        self._extra = [*self._extra, page]

    # --- order of use -----------------------------------------------------------------------------------------------

    def open_cycle(self, kind: str) -> None:
        """A step ("train") or a forward without gradients ("eval") begins; shared pages stay until `rest`."""
        if self._cycle is None or (kind == "train" and self._cycle != "train"):
            self._cycle = kind
            self._cursor = 0
            self.trace = []
            self.streamer.plan(self._plans[kind])
        shared = [page for page in self.cut.shared if page not in self._held]
        if shared:
            self.streamer.acquire(shared, "forward")
            self._held.update(shared)

    @property
    def mid_step(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._cycle == "train"

    def close_cycle(self) -> None:
        """The step has ended: what it did is the plan of the next one."""
        if self._cycle is not None and self.trace:
            self._plans[self._cycle] = self.trace
        self.trace = []
        self._cycle = None
        self._last_index = {}
        self._cursor = 0
        self.streamer.plan(self._plans["train"])

    def _follow(self, pages: tuple[int, ...]) -> None:
        self.trace.append(pages)
        plan = self._plans[self._cycle or "train"]
        for position in range(self._cursor, len(plan)):
            if plan[position] == pages:
                self._cursor = position + 1
                self.streamer.advance(self._cursor % len(plan))
                return

    # --- calls ------------------------------------------------------------------------------------------------------

    def _root(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        if self.recorder is not None:
            return call(*args, **kwargs)
        training = torch.is_grad_enabled()
        if self.baton is None:
            self.open_cycle("train" if training else "eval")
        autocast = torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=True)
        with Faults(self), saved_tensors_hooks(self._pack_glue, self._unpack_glue):
            if self.precision == "bf16":
                with autocast:
                    result = call(*args, **kwargs)
            else:
                result = call(*args, **kwargs)
        if not training and self.baton is None:
            was = self._cycle
            self.rest()
            if was == "eval":
                self.close_cycle()
        return result

    def _pack_glue(self, tensor: torch.Tensor) -> object:
        view = self.slab_view(tensor)
        return tensor if view is None else view

    def _unpack_glue(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, SlabView):
            self.enter_backward(self.strays[packed.page])
            return self.view_slab(packed)
        return packed

    def record(self, recorder: Recorder) -> None:
        """Show every call of a layer to a recorder instead of streaming (in a profiling child only)."""
        self.recorder = recorder

    def _visit(self, layer: Layer, call: Callable, args: tuple, kwargs: dict) -> Any:
        if self.recorder is not None:
            return self.recorder.visit(layer, call, args, kwargs)
        if self.local.visiting is not None:
            return call(*args, **kwargs)
        self.enter(layer)
        if self.baton is not None and self.local.index == 0:
            self.visited.append(layer.name)
        torch.clear_autocast_cache()
        self.local.visiting = layer
        try:
            if not torch.is_grad_enabled():
                return call(*args, **kwargs)
            return self._visit_with_grad(layer, call, args, kwargs)
        finally:
            self.local.visiting = None
            torch.clear_autocast_cache()

    def _visit_with_grad(self, layer: Layer, call: Callable, args: tuple, kwargs: dict) -> Any:
        number = self.number[id(layer)]
        if number in self.keep:
            before = self._buffers_before(number)
            keeping = KeepingVisit(self, layer)
            with saved_tensors_hooks(keeping.pack, keeping.unpack):
                result = call(*args, **kwargs)
            self._buffers_changed(before)
            return result
        visit = RecomputingVisit(self, layer, call, args, kwargs)
        before = self._buffers_before(number)
        random = torch.get_rng_state()
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        versions = [tensor._version for tensor in inputs]
        with saved_tensors_hooks(visit.pack, visit.unpack):
            result = call(*args, **kwargs)
        if any(t._version != v for t, v in zip(inputs, versions, strict=True)):
            raise RefusedError(
                f"layer {layer.name!r} changes its input in place, so it cannot be run again from it. "
                f"Make the operation out of place (inplace=False), or let it keep its activations: keep=[{layer.name!r}]"
            )
        if not torch.equal(random, torch.get_rng_state()):
            visit.random = random
        visit.buffers = self._buffers_changed(before)
        return result

    @contextmanager
    def inside(self, layer: Layer) -> Iterator[None]:
        """While a layer is run again."""
        outer, self.local.visiting = self.local.visiting, layer
        try:
            with Faults(self):
                yield
        finally:
            self.local.visiting = outer

    # --- buffers ----------------------------------------------------------------------------------------------------

    def _buffers_before(self, number: int) -> dict[int, torch.Tensor]:
        """Copies of the buffers that a layer may change."""
        return {key: self._buffers[key].detach().clone() for key in self._layer_buffers[number]}

    def _buffers_changed(self, before: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The old values of the buffers that the layer has changed; by value, as batch_norm bumps no version."""
        changed = {key: value for key, value in before.items() if not torch.equal(self._buffers[key], value)}
        self._mutated.update(changed)
        if self._buffer_log is not None:
            for key, value in changed.items():
                self._buffer_log.setdefault(key, value)
        return changed

    # --- gradients --------------------------------------------------------------------------------------------------

    def _put_gradients_back(self, page: int) -> None:
        """More is about to be added to gradients that have left: take them back."""
        if page in self._arrived or not self.streamer.pages[page].grads.present:
            return
        grads = self.streamer.take_gradients(page)
        for index, grad in grads.items():
            self.cut.pages[page].params[index][1].grad = grad
        self._arrived.add(page)

    def _stash(self, page: int) -> None:
        grads: dict[int, torch.Tensor] = {}
        for index, (name, param) in enumerate(self.cut.pages[page].params):
            grad, param.grad = param.grad, None
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise RefusedError(f"the gradient of {name} is sparse: use sparse=False, its layer streams dense ones")
            self.norms[page, index] = torch.linalg.vector_norm(grad)
            grads[index] = grad.contiguous()
        self.streamer.stash(page, grads)

    def forget_gradients(self) -> None:
        """Drop every gradient of the step so far."""
        for page in self.cut.pages:
            for _, param in page.params:
                param.grad = None
        self._arrived.clear()
        self.norms.clear()
        self.streamer.drop_gradients()

    def start_log(self) -> None:
        """Remember buffers as they are before they change, to be able to put them back."""
        inside = {key for keys in self._layer_buffers for key in keys}
        self._outside = [key for key in self._buffers if key not in inside]
        self._buffer_log = {key: self._buffers[key].detach().clone() for key in self._outside}
        self.visited = []

    def undo_log(self) -> None:
        """Put back the buffers that have changed since `start_log`."""
        with torch.no_grad():
            for key, value in (self._buffer_log or {}).items():
                self._buffers[key].copy_(value)
        self._buffer_log = None

    def shared_state(self) -> str | None:
        """A reason why the layer-major order may differ: a buffer that several calls of a micro-batch change."""
        calls = Counter(layer for layer in self.visited)
        for number, layer in enumerate(self.cut.layers):
            keys = [key for key in self._layer_buffers[number] if key in self._mutated]
            if keys and calls[layer.name] > 1:
                return f"layer {layer.name!r} changes its buffers and is called more than once"
        log = self._buffer_log or {}
        if any(not torch.equal(self._buffers[key], log[key]) for key in self._outside if key in log):
            return "a module outside every layer changes its buffers"
        return None

    def note_kept(self, layer: Layer, tensor: torch.Tensor) -> None:
        """Count activations that are kept, by layer."""
        self.kept_bytes[layer.name] = self.kept_bytes.get(layer.name, 0) + tensor.numel() * tensor.element_size()


class Faults(TorchFunctionMode):
    """Fetches the page of a parameter that is used outside every border."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if isinstance(value, nn.Parameter):
                self._use(func, value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    if isinstance(item, nn.Parameter):
                        self._use(func, item)
        return func(*args, **kwargs)

    def _use(self, func: Callable, param: nn.Parameter) -> None:
        entry = self.engine.page_of.get(id(param))
        if entry is None or entry[0] in self.engine._held:
            return
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") not in READING_ATTRIBUTES:
            return
        if name not in METADATA:
            self.engine._touch(entry[0])


__all__ = ["Abandoned", "Engine", "Inexact"]
