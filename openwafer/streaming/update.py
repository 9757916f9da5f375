"""The optimizer update of a piece of one parameter, with the bits of the user's own torch optimizer.

`OptimizerSpec` says what a live optimizer is, `state_layout` what it keeps per parameter, `apply` updates in place.
The torch path runs the user's optimizer class itself on a stand-in parameter, so each of its implementations
(for-loop, foreach, fused) gives its own bits; the native path (kernels.py) is held against it. Nothing here knows
pages, files or schedules, and gradients are neither reduced nor checked for NaN.

Measured (tests/streaming/test_update.py; torch 2.13, CPU): the for-loop and foreach forms give the same bits however a
parameter is cut; the fused ones round the last n mod 8 elements of a call otherwise, so a piece must begin at a
multiple of `CHUNK_MULTIPLE` elements of its parameter and end at one or at the parameter's end.
"""

import contextlib
import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from openwafer.base.errors import ConfigError, RefusedError
from openwafer.streaming import kernels, rounding
from openwafer.streaming.lion import Lion

CHUNK_MULTIPLE = 64  # elements; torch's fused kernels need the vector width (8 or 16 fp32), 64 is safe for any

SUPPORTED = (AdamW, Adam, SGD, Adafactor, Lion)


@dataclass(frozen=True)
class StateTensor:
    """One tensor that an optimizer keeps per parameter; it starts as zeros."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class OptimizerSpec:
    """What kind of update a live optimizer makes; hyperparameters come with every call of `apply`.

    Attributes:
        optimizer: one of `SUPPORTED`.
        moments: float32, or bfloat16: moments are kept in bf16 and rounded stochastically after each update.
        seed: of the stochastic rounding; the result is a function of (seed, step, element) alone.
    """

    optimizer: type[Optimizer]
    moments: torch.dtype = torch.float32
    seed: int = 0
    # One private optimizer per thread, reused: making one costs more than a small update.
    _stand_ins: threading.local = field(default_factory=threading.local, compare=False, repr=False)

    @classmethod
    def of(cls, optimizer: Optimizer, *, moments: torch.dtype = torch.float32, seed: int = 0) -> "OptimizerSpec":
        """The spec of a live optimizer.

        Raises:
            RefusedError: a class, an option or a hook whose effect streaming cannot reproduce.
            ConfigError: `moments` is neither float32 nor bfloat16.
        """
        kind = type(optimizer)
        if kind not in SUPPORTED:
            names = ", ".join(supported.__name__ for supported in SUPPORTED)
            raise RefusedError(
                f"optimizer {kind.__module__}.{kind.__qualname__} cannot be streamed; supported: {names} (these "
                "classes themselves: a subclass may override step)"
            )
        if moments not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"moments must be torch.float32 or torch.bfloat16, got {moments}")
        if moments != torch.float32 and kind is Adafactor:
            raise RefusedError("Adafactor keeps its (already small) factors in fp32; use moments=torch.float32")
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise RefusedError("the optimizer has step hooks, which would see no parameter here; remove them")
        for group in optimizer.param_groups:
            for option in ("capturable", "differentiable"):
                if group.get(option):
                    raise RefusedError(f"{kind.__name__}({option}=True) cannot be streamed; use {option}=False")
        return cls(kind, moments, seed)

    @property
    def name(self) -> str:
        """Class name, as in `torch.optim`."""
        return self.optimizer.__name__

    @property
    def elementwise(self) -> bool:
        """Whether a parameter may be updated piece by piece; else `apply` wants it whole, in its own shape."""
        return self.optimizer is not Adafactor


def snapshot(group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a param_group as they are now (tensors copied), for `apply`."""
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def state_layout(
    spec: OptimizerSpec, group: Mapping[str, Any], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[StateTensor]:
    """State tensors for one parameter of `shape` and `dtype` in `group`, in a fixed order; all begin as zeros.

    The update count is not among them: the caller keeps it as an int per parameter.

    Raises:
        RefusedError: bf16 moments for a parameter that is not fp32.
    """
    shape = tuple(shape)
    if spec.moments != torch.float32 and dtype != torch.float32:
        raise RefusedError(f"moments='bf16' are rounded from fp32, and a parameter is {dtype}: use moments='fp32'")
    # As torch does, state is of the parameter's dtype.
    kept = spec.moments if dtype == torch.float32 else dtype
    if spec.optimizer is not Adafactor:
        return [StateTensor(name, shape, kept) for name in _elementwise_names(spec, group)]
    if len(shape) < 2:
        return [StateTensor("variance", shape, kept)]
    row, col = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
    return [StateTensor("row_var", row, kept), StateTensor("col_var", col, kept)]


def apply(
    spec: OptimizerSpec,
    hyper: Mapping[str, Any],
    step: int,
    p: Tensor,
    g: Tensor,
    state: Mapping[str, Tensor],
    clip_coef: float | Tensor | None = None,
    *,
    element: int = 0,
) -> None:
    """Clip and update one piece of a parameter in place.

    Args:
        spec: what to run.
        hyper: `snapshot` of the parameter's group; may differ at every step.
        step: count of this update of this parameter, 1 for the first.
        p: fp32 master weights, any shape (Adafactor: the parameter's own), contiguous, any 4-byte alignment.
        g: gradient of the same shape, fp32 or bf16. Its content is undefined afterwards.
        state: name -> tensor of p's shape, as in `state_layout`.
        clip_coef: what `clip_grad_norm_` multiplies with (1 included), or None when clipping is off.
        element: global index of p's first element in the run, below 2**63; used by stochastic rounding alone.

    Raises:
        RefusedError: the hyperparameters now need state that the layout did not foresee.
    """
    if p.numel() == 0:
        return
    _check(spec, hyper, step, state)
    if kernels.adam_applies(spec.optimizer, hyper, p, g, state):
        kernels.adam(hyper, step, p, g, state, clip_coef, seed=spec.seed, element=element)
        return
    if g.dtype != p.dtype:
        g = g.to(p.dtype)
    if clip_coef is not None:
        g.mul_(clip_coef)
    if all(tensor.dtype == p.dtype for tensor in state.values()):
        _run(spec, hyper, step, p, g, state)
        return
    wide = {name: tensor.to(p.dtype) for name, tensor in state.items()}
    _run(spec, hyper, step, p, g, wide)
    for slot, (name, tensor) in enumerate(state.items()):
        rounding.round_stochastic(wide[name], tensor, seed=spec.seed, step=step, slot=slot, element=element)


def _elementwise_names(spec: OptimizerSpec, group: Mapping[str, Any]) -> tuple[str, ...]:
    if spec.optimizer is SGD:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()
    if spec.optimizer is Lion:
        return ("exp_avg",)
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")


def _check(spec: OptimizerSpec, hyper: Mapping[str, Any], step: int, state: Mapping[str, Tensor]) -> None:
    assert step >= 1, step
    if spec.optimizer is Adafactor:
        return
    needed = _elementwise_names(spec, hyper)
    missing = [name for name in needed if name not in state]
    if missing:
        raise RefusedError(
            f"{spec.name} now needs state {missing}, which was not laid out when the job was made: momentum and "
            "amsgrad cannot be switched on in a running job; set them before"
        )
    # torch creates the buffer at the first step that has momentum, which a step count cannot tell.
    if spec.optimizer is SGD and step == 1 and state and not needed:
        raise RefusedError("SGD momentum was on when the job was made and is 0 at the first step; keep it on")


def _run(
    spec: OptimizerSpec, hyper: Mapping[str, Any], step: int, p: Tensor, g: Tensor, state: Mapping[str, Tensor]
) -> None:
    """One step of a private optimizer of the user's class, whose only parameter is `p`."""
    optimizer, counters = _stand_in(spec)
    param = p.detach()
    param.grad = g.detach()
    group = optimizer.param_groups[0]
    group.clear()
    group.update(hyper)
    group["params"] = [param]
    held: dict[str, Any] = dict(state)
    if spec.optimizer is SGD:
        # Plain torch has no buffer before the first update; afterwards it is a copy of the gradient.
        if step == 1:
            held.clear()
    elif spec.optimizer is not Lion:
        counter = counters.setdefault(p.device, {})
        held["step"] = _counter(counter, bool(hyper.get("fused")), step, p.device)
    optimizer.state.clear()
    optimizer.state[param] = held
    try:
        # Adafactor's outer product is a matrix product, which a caller's autocast would make in bf16. Only then: to
        # leave autocast empties its cache, which belongs to all threads.
        off = not spec.elementwise and torch.is_autocast_enabled(p.device.type)
        with torch.autocast(p.device.type, enabled=False) if off else contextlib.nullcontext():
            optimizer.step()
        if spec.optimizer is SGD and step == 1 and held.get("momentum_buffer") is not None:
            state["momentum_buffer"].copy_(held["momentum_buffer"])
    finally:
        optimizer.state.clear()
        group["params"] = []


def _stand_in(spec: OptimizerSpec) -> tuple[Optimizer, dict]:
    local = spec._stand_ins
    if not hasattr(local, "optimizer"):
        # A new instance, because a learning rate scheduler wraps `step` of the user's.
        make: Any = spec.optimizer
        local.optimizer = make([torch.zeros(1, device="cpu")], lr=1e-3)
        local.counters = {}
    return local.optimizer, local.counters


def _counter(held: dict[bool, Tensor], fused: bool, step: int, device: torch.device) -> Tensor:
    """The 0-dim count of updates made so far, as torch.optim would hold it."""
    if fused not in held:
        where = device if fused else torch.device("cpu")
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
        held[fused] = torch.zeros((), dtype=dtype, device=where)
    return held[fused].fill_(step - 1)
