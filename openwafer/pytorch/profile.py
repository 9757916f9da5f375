"""How much memory the activations of a step take, found out without computing anything.

The model's own forward and backward run on fake tensors (shapes without data) in a forked child, which counts what is
alive at every moment, layer by layer. The parent's memory does not grow. A model whose control flow depends on its
data cannot be run so; then there is no profile. A process that uses a device cannot fork and run a backward: there the
model runs in the process itself. The fake tensors are those of a CPU in any case.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from openwafer.pytorch.partition import Layer

TIMEOUT_S = 300.0


@dataclass
class Segment:
    """A stretch of a step between two borders.

    Attributes:
        visit: index of the layer's call in the order of the forward; -1 is the code between layers.
        live_bytes: alive at its start, gradients of parameters not counted.
        peak_bytes: most that was alive in it, likewise.
        new_gradient_bytes: gradients of parameters that became final in it.
    """

    backward: bool
    visit: int
    live_bytes: int = 0
    peak_bytes: int = 0
    new_gradient_bytes: int = 0


@dataclass
class Profile:
    """What one micro-batch keeps alive, when every layer keeps its activations.

    Attributes:
        layers: index of the layer of each visit, in the order of the forward.
        flops: of matrix products; `moved_bytes`: read and written by all other operations.
        saved_bytes: what each visit leaves alive; `output_bytes`: the part of it that is the layer's output.
    """

    layers: list[int] = field(default_factory=list)
    saved_bytes: list[int] = field(default_factory=list)
    output_bytes: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    flops: float = 0.0
    moved_bytes: float = 0.0


class _Counter(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.gradients = 0
        self.segments = [Segment(False, -1)]
        self.flops = 0.0
        self.moved_bytes = 0.0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        for tensor in made:
            self._note(tensor)
        if func in _PRODUCTS:
            self.flops += _PRODUCTS[func](args, result)
        elif not any(ret.alias_info is not None and not ret.alias_info.is_write for ret in func._schema.returns):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.moved_bytes += sum(t.numel() * t.element_size() for t in (*made, *given))
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        segment = self.segments[-1]
        segment.peak_bytes = max(segment.peak_bytes, self.live - self.gradients)

    def begin(self, backward: bool, visit: int) -> None:
        """A border is crossed."""
        now = self.live - self.gradients
        self.segments.append(Segment(backward, visit, now, now))


def _mm(args: tuple, result: torch.Tensor) -> float:
    left = args[-2] if len(args) == 2 else args[1]
    return 2.0 * result.numel() * left.shape[-1]


_PRODUCTS = {
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.addmm.default: _mm,
    torch.ops.aten.addmm_.default: _mm,
    torch.ops.aten.mm.out: _mm,
    torch.ops.aten.bmm.default: _mm,
}


class Recorder:
    """Watches the calls of layers while the model runs on fake tensors."""

    def __init__(self, number: dict[int, int]):
        self.number = number
        self.profile = Profile()
        self.counter = _Counter()
        self.inside = False

    def visit(self, layer: Layer, call: Callable, args: tuple, kwargs: dict) -> Any:
        """A layer is called."""
        if self.inside:
            return call(*args, **kwargs)
        visit = len(self.profile.layers)
        self.profile.layers.append(self.number[id(layer)])
        self.counter.begin(False, visit)
        before = self.counter.live

        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            last = self.counter.segments[-1]
            if not (last.backward and last.visit == visit):
                self.counter.begin(True, visit)
            return tensor

        self.inside = True
        try:
            with saved_tensors_hooks(lambda tensor: tensor, unpack):
                result = call(*args, **kwargs)
        finally:
            self.inside = False
        self.profile.saved_bytes.append(self.counter.live - before)
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        given = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.profile.output_bytes.append(sum(t.untyped_storage().nbytes() for t in outputs if id(t) not in given))
        self.counter.begin(False, -1)
        return result


def profile(
    model: nn.Module, batch: Any, run: Callable[[Any], torch.Tensor], number: dict[int, int], install: Callable
) -> Profile | str:
    """Profile one micro-batch; the reason in words if the model cannot be run on fake tensors.

    Args:
        run: forward and loss of a batch.
        number: index of each layer by id.
        install: called with a Recorder, whose `visit` must then see every call of a layer.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child runs none of them
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            result = _in_child(model, batch, run, number, install)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(result, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return _receive(reading, child)


def profile_here(
    model: nn.Module, batch: Any, run: Callable[[Any], torch.Tensor], number: dict[int, int], install: Callable
) -> Profile | str:
    """As `profile`, in this process; the caller puts back what the model changed of itself."""
    try:
        return _run_fake(model, batch, run, number, install)
    except Exception as error:  # noqa: BLE001  # told in words, as from a child
        return _in_words(error)


def _receive(reading: int, child: int) -> Profile | str:
    chunks: list[bytes] = []
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return f"it did not finish on fake tensors in {TIMEOUT_S:.0f} s"
            chunk = os.read(reading, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    # Only ever our own child's bytes.
    return pickle.loads(b"".join(chunks)) if chunks else "the profiling process died"


def _in_child(model: nn.Module, batch: Any, run: Callable, number: dict[int, int], install: Callable) -> Profile | str:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        return _run_fake(model, batch, run, number, install)
    except BaseException as error:  # noqa: BLE001  # told to the parent in words
        return _in_words(error)


def _in_words(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {first_line} ({last.filename}:{last.lineno})"


def _run_fake(model: nn.Module, batch: Any, run: Callable, number: dict[int, int], install: Callable) -> Profile:
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = Recorder(number)
    install(recorder)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    counter = recorder.counter
    with mode:
        values: dict[str, torch.Tensor] = {}
        for name, param in model.named_parameters():
            fake = nn.Parameter(torch.empty(param.shape, dtype=param.dtype), requires_grad=param.requires_grad)
            values[name] = fake
            if param.requires_grad:
                fake.register_post_accumulate_grad_hook(lambda p: _final(counter, p))
        for name, buffer in model.named_buffers():
            values[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        fakes = tree_map_only(torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype), batch)
        with counter, _parameters(model, values):
            loss = run(fakes)
            counter.begin(True, -1)
            loss.backward()
    result = recorder.profile
    result.segments = counter.segments
    result.flops, result.moved_bytes = counter.flops, counter.moved_bytes
    return result


def _final(counter: _Counter, param: torch.Tensor) -> None:
    assert param.grad is not None
    size = param.grad.untyped_storage().nbytes()
    counter.gradients += size
    counter.segments[-1].new_gradient_bytes += size


def _parameters(model: nn.Module, values: dict[str, torch.Tensor]) -> contextlib.AbstractContextManager:
    from torch.nn.utils.stateless import _reparametrize_module

    return _reparametrize_module(model, values, tie_weights=True)
