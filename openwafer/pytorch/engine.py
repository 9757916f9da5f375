"""Stands between a model and the streamer: sees every call of a layer, every use of a parameter, every gradient.

The modules are the user's; a layer's class is replaced by a subclass whose call is a border. Parameters that are not
in memory have their shape and dtype but hold a single NaN, so that a use that escaped notice cannot go unnoticed.
Gradients are taken from `.grad` as soon as the layer is left, and put back before more is added to them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from openwafer.base.errors import RefusedError
from openwafer.pytorch.faults import Faults
from openwafer.pytorch.partition import Layer, Partition
from openwafer.pytorch.profile import Recorder
from openwafer.pytorch.random_state import RandomState
from openwafer.pytorch.schedule import Abandoned, Baton
from openwafer.pytorch.side_state import SideState, Snapshot
from openwafer.pytorch.visit import KeepingVisit, Kept, RecomputingVisit, SlabView
from openwafer.streaming.heap import Heap
from openwafer.streaming.link import Link
from openwafer.streaming.streamer import Streamer
from openwafer.streaming.window import Window

# Modules of torch that take another path without gradients, unless something overrides torch functions.
FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
SMALL_BUFFER_BYTES = 1 << 16

_grad_of: Any = torch.Tensor.grad


class Pass(threading.local):
    """What the current thread is doing: which micro-batch, in the model's call or not, in which layer's call.

    `turn` is the micro-batch's place among those that take turns with it.
    """

    index = 0
    turn = 0
    inside = False
    visiting: Layer | None = None
    casts: dict[int, int] | None = None


class Inexact(BaseException):
    """The layer-major order was found to differ from the plain one; the step is run again in the plain order."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Engine:
    """Runs one model over one streamer.

    Args:
        precision: "bf16" runs forwards under autocast, "fp32" leaves them as they are.
        link: to the device that computes; None: the CPU, in host memory.
    """

    def __init__(self, model: nn.Module, cut: Partition, precision: str, link: Link | None = None):
        self.model = model
        self.cut = cut
        self.precision = precision
        self.link = link
        self.device = torch.device("cpu") if link is None else link.device
        self.device_type = self.device.type
        self.generators = () if link is None else link.generators
        self.streamer: Streamer | Window = None  # type: ignore[assignment]  # set by attach
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
        self.updates = 0
        self.stale_gradients = False
        self.turns_watched = 0
        self.share_casts = False
        self.side = SideState(model, frozenset(self.page_of))
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
        self._threading: Any = None
        self._classes: list[tuple[nn.Module, type]] = []
        self._buffers: dict[int, torch.Tensor] = {}
        self._layer_buffers: list[tuple[int, ...]] = []
        self._buffer_log: dict[int, torch.Tensor] | None = None
        self._buffer_order: dict[int, list[int]] = {}
        self._outside: list[int] = []
        self._outside_now: dict[int, torch.Tensor] = {}
        self._before: Snapshot | None = None
        self._graphs: dict[int, tuple[int, Any]] = {}
        self._cast_epoch = 0
        self._modules: set[int] = set()
        self._trains: list[tuple[str, nn.Parameter, bool]] = []
        self._combined: dict[tuple[int, ...], Layer] = {}
        self._poison: dict[torch.dtype, torch.Tensor] = {}
        self.heap = Heap()
        self.growth_bytes: dict[str, int] = {}

    # --- attaching ------------------------------------------------------------------------------------------------

    def attach(self, streamer: Streamer | Window) -> None:
        """Put the borders into the model."""
        self.streamer = streamer
        if self.link is not None:
            self._threading = torch.autograd.set_multithreading_enabled(False)
        forward = [layer.pages for layer in self.cut.layers]
        self._plans = {"train": forward + forward[::-1], "eval": forward}
        self._trains = [(name, param, param.requires_grad) for name, param in self.model.named_parameters()]
        for page in self.cut.pages:
            for _, param in page.params:
                self._hide_gradient(param)
                if param.requires_grad:
                    self._watch(param)
        left = [tensor for _, tensor in self.cut.left]
        for tensor in [*left, *self.model.buffers()]:
            self._buffers[id(tensor)] = tensor
        for layer in self.cut.layers:
            ids = {id(t) for t in [*layer.module.buffers(), *layer.module.parameters()]}
            self._layer_buffers.append(tuple(key for key in self._buffers if key in ids))
        inside = {key for keys in self._layer_buffers for key in keys}
        self._outside = [key for key in self._buffers if key not in inside]
        self.side.skip = frozenset(self.page_of) | frozenset(self._buffers)
        self._wrap_calls()

    def _wrap_calls(self) -> None:
        """Borders around the layers; the model itself, and modules that hold layers, may be called from outside."""
        inner = {id(module) for layer in self.cut.layers for module in layer.module.modules()}
        self._modules = inner | {id(module) for module in self.model.modules()}
        for module in self.model.modules():
            if isinstance(module, FAST_PATHS):
                self._wrap(module, self._without_faults)
        for layer in self.cut.layers:
            self._wrap(layer.module, lambda call, args, kwargs, layer=layer: self._visit(layer, call, args, kwargs))
        for module in self.model.modules():
            whole = type(module).forward is not nn.Module.forward and next(module.parameters(), None) is not None
            if module is self.model or (whole and id(module) not in inner):
                self._wrap(module, self._root, zero_grad=module is self.model)

    def carry(self) -> Callable[[], AbstractContextManager[Any]]:
        """For the threads of micro-batches: to go on as this thread would.

        On a device, a backward runs in the thread that calls it: torch's own threads know nothing of turns, of autocast
        and of what `local` holds.
        """
        if self.link is None:
            return nullcontext
        stream = self.link.carry()

        @contextmanager
        def carried() -> Iterator[None]:
            with stream(), torch.autograd.set_multithreading_enabled(False):
                yield

        return carried

    def detach(self) -> None:
        """Take the borders out again."""
        if self._threading is not None:
            self._threading.__exit__(None, None, None)
        self.heap.close()
        for handle in self._handles:
            handle.remove()
        for module, original in reversed(self._classes):
            object.__setattr__(module, "__class__", original)
        for page in self.cut.pages:
            for _, param in page.params:
                if hasattr(type(param), "_openwafer_hidden"):
                    param.__class__ = type(param)._openwafer_hidden  # pyright: ignore[reportAttributeAccessIssue]
        self._handles, self._classes = [], []

    def _watch(self, param: nn.Parameter) -> None:
        page, _ = self.page_of[id(param)]

        def before(_: torch.Tensor) -> None:
            if self.stale_gradients:
                raise RefusedError(
                    "the optimizer has stepped and zero_grad() was not called since: plain PyTorch would add the new "
                    "gradients to those of the last step, which are gone. Call optimizer.zero_grad() in every step"
                )
            self._put_gradients_back(page)

        def after(param: torch.Tensor) -> None:
            if self.baton is not None:
                if self.local.index < self._last_index.get(id(param), 0):
                    raise Inexact(f"micro-batches reach {self.cut.pages[page].name} in another order than in a loop")
                self._last_index[id(param)] = self.local.index
            self._arrived.add(page)

        self._handles.append(param.register_hook(before))
        self._handles.append(param.register_post_accumulate_grad_hook(after))

    def _hide_gradient(self, param: nn.Parameter) -> None:
        """Gradients are with the streamer: whoever looks for one at its parameter is told, not given nothing."""
        original = type(param)
        engine = weakref.proxy(self)

        def get(self: torch.Tensor) -> torch.Tensor | None:
            grad = _grad_of.__get__(self)
            if grad is None and engine.has_gradient(self):
                raise RefusedError(
                    "gradients leave for the store as soon as they are made, so `.grad` is empty: clip with "
                    "compile(clip_norm=...), look at them with job.gradients(), drop them with optimizer.zero_grad()"
                )
            return grad

        def put(self: torch.Tensor, value: torch.Tensor | None) -> None:
            if engine.has_gradient(self):
                if value is not None:
                    raise RefusedError("this gradient is in the store already: `.grad` cannot be set any more")
                engine.drop_gradient(self)
            _grad_of.__set__(self, value)

        hidden = {"grad": property(get, put), "__module__": original.__module__, "_openwafer_hidden": original}
        try:
            param.__class__ = type(original)(original.__name__, (original,), hidden)
        except TypeError:  # a subclass of its own layout keeps its own `grad`
            return

    def has_gradient(self, param: torch.Tensor) -> bool:
        """Whether the streamer has a gradient of this parameter."""
        page, index = self.page_of.get(id(param), (-1, -1))
        if page < 0:
            return False
        runtime = self.streamer.pages[page]
        return runtime.pending is None and index in runtime.grads.present

    def drop_gradient(self, param: torch.Tensor) -> None:
        """Forget the gradient of one parameter."""
        page, index = self.page_of[id(param)]
        grads = self.streamer.take_gradients(page)
        del grads[index]
        self.norms.pop((page, index), None)
        self.streamer.stash(page, grads)

    def _wrap(
        self, module: nn.Module, around: Callable[[Callable, tuple, dict], Any], *, zero_grad: bool = False
    ) -> None:
        """Give a module a class of its own, whose call goes through `around`."""
        original = type(module)
        engine = weakref.proxy(self)

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return around(lambda *a, **k: original.__call__(self, *a, **k), args, kwargs)

        def forget(self: nn.Module, set_to_none: bool = True) -> None:
            engine.zero_grad(set_to_none)

        own = {"__call__": call, "__module__": original.__module__, **({"zero_grad": forget} if zero_grad else {})}
        wrapped = type(original)(original.__name__, (original,), own)  # pyright: ignore[reportCallIssue]
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
            self._poison[param.dtype] = torch.full((1,), float("nan"), dtype=param.dtype, device=self.device)
        if param.numel() == 1:
            return self._poison[param.dtype].clone().reshape(param.shape)
        return self._poison[param.dtype].expand(param.shape)

    def slab_view(self, tensor: torch.Tensor) -> SlabView | None:
        """What to note of a saved tensor if its memory is a page's."""
        page = self._slabs.get(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else None
        if page is None:
            return None
        place = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return SlabView(page, tensor.dtype, *place, self.updates)

    def view_slab(self, view: SlabView) -> torch.Tensor:
        """The saved tensor again; its page is fetched if it is not held."""
        self.require_same_step(view.updates)
        if view.page not in self._held:
            self._touch((view.page,))
        slab = self.streamer.slab(view.page)
        return torch.as_strided(slab.view(view.dtype), view.size, view.stride, view.offset)

    def buffer(self, key: int) -> torch.Tensor:
        return self._buffers[key]

    # --- borders ----------------------------------------------------------------------------------------------------

    def enter(self, layer: Layer) -> None:
        """Cross the border of a layer: its pages are in memory and up to date on return."""
        if self._current is layer:
            return
        if self.baton is not None:
            self.account()
            self.baton.reach(self.local.turn, layer)
        self.heap.tend(self.growth_bytes.get(layer.name, 0))
        if self._current is layer:
            return
        self._leave(layer.pages)
        self._follow(layer.pages)
        self._current = layer
        pages = [page for page in layer.pages if page not in self._held]
        self.streamer.acquire(pages, "backward" if self._in_backward else "forward")
        self._held.update(pages)
        self._extra = pages

    def enter_backward(self, layer: Layer) -> None:
        """Cross a border in the backward."""
        if torch.is_grad_enabled():
            raise RefusedError(
                f"the gradient of {layer.name!r} is itself to be differentiated (create_graph=True): streaming holds "
                "no graph of the backward"
            )
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
        self.local.casts = None
        self._clear_casts()
        if self._cursor >= len(self._plans[self._cycle or "train"]):
            self._cursor = 0  # the plan is of fewer rounds than this step has

    def require_same_step(self, updates: int) -> None:
        """A backward may only use the parameters its forward has used."""
        if updates != self.updates:
            raise RefusedError(
                "the optimizer has stepped between this forward and its backward, so the parameters of the forward are "
                "gone: call backward() before optimizer.step()"
            )

    def _leave(self, following: tuple[int, ...]) -> None:
        for page in [p for p in self._arrived if p not in following and p not in self.cut.shared]:
            self._stash(page)
            self._arrived.discard(page)
        self._held.difference_update(self._extra)
        self.streamer.release(self._extra)
        self._extra = []
        self._current = None

    def _touch(self, pages: tuple[int, ...]) -> None:
        """Parameters are used that no border announced, in one operation."""
        if self.local.visiting is None:
            self.enter(self._stray(pages))
            return
        self.streamer.acquire(pages, "stray")
        self._held.update(pages)
        self._extra = [*self._extra, *pages]

    def _stray(self, pages: tuple[int, ...]) -> Layer:
        if len(pages) == 1:
            return self.strays[pages[0]]
        if pages not in self._combined:
            self._combined[pages] = Layer(" and ".join(self.strays[p].name for p in pages), self.model, pages)
        return self._combined[pages]

    # --- order of use -----------------------------------------------------------------------------------------------

    def open_cycle(self, kind: str) -> None:
        """A step ("train") or a forward without gradients ("eval") begins; shared pages stay until `rest`."""
        if kind == "train":
            self._require_same_trains()
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
        if self.recorder is not None or self.local.inside:
            return call(*args, **kwargs)
        if torch._C._current_graph_task_id() != -1:
            # torch.utils.checkpoint calls layers in the backward, with hooks of its own for what they save.
            with self.inside(None):
                return call(*args, **kwargs)
        training = torch.is_grad_enabled()
        if self.baton is not None:
            return self._run_root(call, args, kwargs)
        self.open_cycle("train" if training else "eval")
        try:
            result = self._forward_alone(call, args, kwargs) if training else self._run_root(call, args, kwargs)
        except BaseException:
            self.rest()
            raise
        if not training:
            was = self._cycle
            self.rest()
            if was == "eval":
                self.close_cycle()
        return result

    def _forward_alone(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        """One forward outside of a step of several micro-batches."""
        unsure = not self.share_casts and (self.precision == "bf16" or torch.is_autocast_enabled(self.device_type))
        if not unsure:
            with self.side.forward():
                return self._run_root(call, args, kwargs)
        before, random, first = self.side.snapshot(), RandomState(self.generators), self.local.casts is None
        self.start_log()
        try:
            with self.side.forward():
                return self._run_root(call, args, kwargs)
        except Inexact as inexact:
            if not first:
                raise RefusedError(
                    "several calls of the model in one autocast region share the casts of its parameters: give each "
                    "call a region of its own, or use torch.autocast(..., cache_enabled=False)"
                ) from inexact
            self.undo_log()
            before.restore()
            random.restore()
            self.rest()
            self.open_cycle("train")
            with self.side.forward():
                return self._run_root(call, args, kwargs)
        finally:
            self._buffer_log = None

    def _run_root(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        self.local.inside = True
        if torch.is_grad_enabled() and self.local.casts is None:
            self.local.casts = {}
        bf16 = self.precision == "bf16"
        autocast = torch.autocast(self.device_type, dtype=torch.bfloat16) if bf16 else nullcontext()
        try:
            with Faults(self), saved_tensors_hooks(self._pack_glue, self._unpack_glue), autocast:
                return call(*args, **kwargs)
        finally:
            self.local.inside = False
            if not torch.is_autocast_enabled(self.device_type):  # the region of the casts has ended
                self.local.casts = None

    def cast(self, param: nn.Parameter) -> None:
        """A parameter is used by an operation for which autocast may cast it.

        Autocast casts a parameter once in a region and adds up the gradients of all its uses in the low precision.
        Here casts are forgotten at every border, which is the same while no parameter is cast on both sides of one.
        """
        casts = self.local.casts
        if casts is None or self.share_casts or not param.requires_grad or param.dtype != torch.float32:
            return
        if not (torch.is_autocast_enabled(self.device_type) and torch.is_autocast_cache_enabled()):
            return
        if casts.setdefault(id(param), self._cast_epoch) != self._cast_epoch:
            self.share_casts = True
            raise Inexact("layers share parameters under autocast, which casts them once for all")

    def _clear_casts(self) -> None:
        if not self.share_casts:
            torch.clear_autocast_cache()
            self._cast_epoch += 1

    def _without_faults(self, call: Callable, args: tuple, kwargs: dict) -> Any:
        """torch's own fast paths look whether anything overrides torch functions, as `Faults` does."""
        if torch.is_grad_enabled() or self.recorder is not None:
            return call(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return call(*args, **kwargs)

    def _pack_glue(self, tensor: torch.Tensor) -> object:
        view = self.slab_view(tensor)
        return Kept(tensor) if view is None else view

    def _unpack_glue(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, SlabView):
            self.enter_backward(self.strays[packed.page])
            return self.view_slab(packed)
        return packed.tensor_as_saved()

    def record(self, recorder: Recorder) -> None:
        """Show every call of a layer to a recorder instead of streaming, on the CPU (in a profiling child only)."""
        self.recorder = recorder
        self.device_type = "cpu"

    @contextmanager
    def recording(self) -> Iterator[None]:
        """`record` may be called within; afterwards the engine and the model are as they were."""
        before = self.side.snapshot()
        try:
            yield
        finally:
            self.recorder, self.device_type = None, self.device.type
            before.restore()

    def _visit(self, layer: Layer, call: Callable, args: tuple, kwargs: dict) -> Any:
        if self.recorder is not None:
            return self.recorder.visit(layer, call, args, kwargs)
        if self.local.visiting is not None:
            return call(*args, **kwargs)
        if not self.local.inside:
            return self._root(lambda *a, **k: self._visit(layer, call, a, k), args, kwargs)
        self.enter(layer)
        self._clear_casts()
        self.local.visiting = layer
        try:
            return (
                self._visit_with_grad(layer, call, args, kwargs) if torch.is_grad_enabled() else call(*args, **kwargs)
            )
        finally:
            self.local.visiting = None
            self._clear_casts()

    def _visit_with_grad(self, layer: Layer, call: Callable, args: tuple, kwargs: dict) -> Any:
        number = self.number[id(layer)]
        before = self._buffers_before(number)
        visit = (KeepingVisit if number in self.keep else RecomputingVisit)(self, layer, call, args, kwargs)
        try:
            with saved_tensors_hooks(visit.pack, visit.unpack):
                result = call(*args, **kwargs)
        finally:
            changed = self._buffers_changed(before)
        visit.left(before, changed)
        return result

    @contextmanager
    def inside(self, layer: Layer | None) -> Iterator[None]:
        """While a layer, or code between layers, is run again."""
        local = self.local
        before = local.inside, local.visiting, local.casts
        local.inside, local.visiting, local.casts = True, layer, None
        try:
            with Faults(self):
                yield
        finally:
            local.inside, local.visiting, local.casts = before

    # --- buffers ----------------------------------------------------------------------------------------------------

    def _buffers_before(self, number: int) -> dict[int, torch.Tensor]:
        """Copies of the buffers that a layer may change, and of small ones that it may read."""
        small = [key for key in self._outside if self._buffers[key].nbytes <= SMALL_BUFFER_BYTES]
        return {key: self._buffers[key].detach().clone() for key in (*self._layer_buffers[number], *small)}

    def _buffers_changed(self, before: Mapping[int, torch.Tensor]) -> set[int]:
        """The buffers that a layer has changed; by value, as batch_norm bumps no version."""
        changed = {key for key, value in before.items() if not same_bits(self._buffers[key], value)}
        if self._buffer_log is not None:
            for key in changed:
                self._buffer_log.setdefault(key, before[key])
                self._buffer_order.setdefault(key, []).append(self.local.index)
        return changed

    # --- gradients --------------------------------------------------------------------------------------------------

    def _put_gradients_back(self, page: int) -> None:
        """More is about to be added to gradients that have left: take them back."""
        if page in self._arrived or not self.streamer.pages[page].grads.present:
            return
        grads = self.streamer.take_gradients(page)
        for index, grad in grads.items():
            _grad_of.__set__(self.cut.pages[page].params[index][1], grad)
        self._arrived.add(page)

    def _stash(self, page: int) -> None:
        grads: dict[int, torch.Tensor] = {}
        for index, (name, param) in enumerate(self.cut.pages[page].params):
            grad = _grad_of.__get__(param)
            if grad is None:
                continue
            _grad_of.__set__(param, None)
            if grad.layout != torch.strided:
                raise RefusedError(f"the gradient of {name} is sparse: use sparse=False, its layer streams dense ones")
            self.norms[page, index] = norm_of(grad)
            grads[index] = grad.contiguous()
        self.streamer.stash(page, grads)

    def forget_gradients(self) -> None:
        """Drop every gradient of the step so far."""
        for page in self.cut.pages:
            for _, param in page.params:
                _grad_of.__set__(param, None)
        self._arrived.clear()
        self.norms.clear()
        self.streamer.drop_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that no update has used yet."""
        if not set_to_none:
            raise RefusedError(
                "zero_grad(set_to_none=False) leaves gradients of zero, with which the optimizer would go on updating "
                "parameters that are not used: call zero_grad()"
            )
        self.rest()
        self.forget_gradients()
        self.stale_gradients = False
        for _, param in self.cut.left:
            param.grad = None

    def _require_same_trains(self) -> None:
        for name, param, trains in self._trains:
            if param.requires_grad and not trains:
                raise RefusedError(f"{name} was frozen when the job was made and requires gradients now: compile again")

    # --- what may go wrong when micro-batches take turns -------------------------------------------------------------

    def start_log(self) -> None:
        """Remember buffers as they are before they change, to be able to put them back."""
        self._buffer_log = {key: self._buffers[key].detach().clone() for key in self._outside}
        self._outside_now = dict(self._buffer_log)
        self._buffer_order = {}

    def undo_log(self) -> None:
        """Put back the buffers that have changed since `start_log`."""
        with torch.no_grad():
            for key, value in (self._buffer_log or {}).items():
                self._buffers[key].data.copy_(value)
        self._buffer_log = None

    @contextmanager
    def taking_turns(self) -> Iterator[None]:
        """While micro-batches take turns, as `baton` has it: whatever one of them leaves for another to see ends it."""

        def assigned(module: nn.Module, name: str) -> None:
            if id(module) in self._modules:
                raise Inexact(f"{type(module).__name__} keeps {name!r} from one call to another")

        self.start_log()
        self._before = self.side.snapshot()
        self.side.on_change = assigned
        self._last_index = {}
        self._graphs = {}
        try:
            with self.side.assignments():
                yield
        finally:
            self.baton = None
            self.side.on_change = None

    @property
    def expected_order(self) -> list[object]:
        """The borders of a step, if layers are called in the order in which they were found."""
        return [*self.cut.layers, *reversed(self.cut.layers)]

    def claim_graph(self, loss: torch.Tensor) -> None:
        """The backward of a micro-batch begins: its graph must be its own.

        Raises:
            Inexact: part of it belongs to another micro-batch, so something was carried over.
        """
        if self.baton is None:
            return
        waiting: list[Any] = [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or type(node).__name__ == "AccumulateGrad":
                continue
            if id(node) not in self._graphs:
                self._graphs[id(node)] = self.local.index, node
                waiting.extend(following for following, _ in node.next_functions)
            elif self._graphs[id(node)][0] != self.local.index:
                raise Inexact("a micro-batch uses what another has computed")

    def account(self) -> None:
        """The turn is about to pass on: what the micro-batch has changed outside of layers since it got the turn."""
        for key, value in self._outside_now.items():
            if not same_bits(self._buffers[key], value):
                self._outside_now[key] = self._buffers[key].detach().clone()
                self._buffer_order.setdefault(key, []).append(self.local.index)
        if self.turns_watched < 2 and self.local.index == 0:
            self.require_unchanged()

    def require_unchanged(self) -> None:
        """No micro-batch may leave anything in the model's attributes, lists or generators.

        Raises:
            Inexact: one did.
        """
        assert self._before is not None
        changed = self._before.changed()
        if changed:
            raise Inexact(f"the model keeps something from one call to another, in a {type(changed[0]).__name__}")
        for key, order in self._buffer_order.items():
            if order != sorted(order):
                shape = tuple(self._buffers[key].shape)
                raise Inexact(f"a buffer of shape {shape} is changed several times by each micro-batch")

    def turns_ended(self, exact: bool) -> None:
        """All micro-batches are through; if not exactly, what they have changed is put back."""
        self.turns_watched += 1
        if not exact:
            self.undo_log()
            assert self._before is not None
            self._before.restore()
        self._buffer_log = self._before = None
        self._graphs = {}

    def note_kept(self, layer: Layer, tensor: torch.Tensor) -> None:
        """Count activations that are kept, by layer."""
        self.kept_bytes[layer.name] = self.kept_bytes.get(layer.name, 0) + tensor.numel() * tensor.element_size()


def norm_of(grad: torch.Tensor) -> torch.Tensor:
    """With the bits of `clip_grad_norm_`, which has a kernel of its own on CUDA."""
    if grad.is_cuda:
        return torch._foreach_norm([grad])[0]  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(grad)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal values, NaN included."""
    if torch.equal(left, right):
        return True
    return (
        left.is_floating_point()
        and torch.equal(left.nan_to_num(), right.nan_to_num())
        and torch.equal(left.isnan(), right.isnan())
    )


__all__ = ["Abandoned", "Engine", "Inexact"]
