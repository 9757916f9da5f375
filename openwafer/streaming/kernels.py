"""The native Adam and AdamW update (kernels.c), loaded through ctypes; it runs without the GIL, on one thread per call.

The library lies beside this file as `_kernels.so`, built at install (setup.py). Before its first use it is compared
with torch.optim on this machine, because which roundings torch makes depends on the processor and the version; a
flavour whose bits differ is left to torch. Where the library is absent or differs, that is logged once and the
pure-torch path of update.py runs: same results, slower. OPENWAFER_NATIVE=0 switches the library off.
"""

import ctypes
import functools
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from openwafer.streaming.rounding import rounding_key

_LOG = logging.getLogger(__name__)
_STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_NUMBERS = ("lr", "eps", "weight_decay")

# Addresses for `vml_sqrt` and `vml_threads` of kernels.c; none for the correctly rounded root.
_Root = tuple[int | None, int | None]
_EXACT: _Root = (None, None)


class _AdamArgs(ctypes.Structure):
    """Mirrors `adam_args` in kernels.c."""

    _fields_ = [
        ("vml_sqrt", ctypes.c_void_p),
        ("vml_threads", ctypes.c_void_p),
        ("key", ctypes.c_uint64 * 2),
        ("element", ctypes.c_uint64),
        *[
            (name, ctypes.c_float)
            for name in ("clip_coef", "decay", "l2", "weight1", "beta2", "weight2", "correction2_sqrt", "eps", "step")
        ],
        *[(name, ctypes.c_int32) for name in ("has_clip", "has_l2", "maximize", "grad_bf16", "moments_bf16", "fused")],
    ]


def adam_applies(
    optimizer: type[Optimizer], hyper: Mapping[str, Any], p: Tensor, g: Tensor, state: Mapping[str, Tensor]
) -> bool:
    """Whether `adam` gives the bits of `optimizer` for these tensors; False also without the library."""
    if optimizer is not AdamW and optimizer is not Adam:
        return False
    # A tensor hyperparameter makes torch compute the scalar factors in fp32.
    if any(isinstance(hyper[name], Tensor) for name in _NUMBERS) or any(isinstance(b, Tensor) for b in hyper["betas"]):
        return False
    if p.dtype != torch.float32 or g.dtype not in (torch.float32, torch.bfloat16):
        return False
    moments = state["exp_avg"].dtype
    if moments not in (torch.float32, torch.bfloat16):
        return False
    for tensor in (p, g, *state.values()):
        if not (tensor.is_cpu and tensor.is_contiguous() and tensor.numel() == p.numel()):
            return False
    if any(tensor.dtype != moments for tensor in state.values()):
        return False
    return bool(hyper.get("fused")) in flavours()


def adam(
    hyper: Mapping[str, Any],
    step: int,
    p: Tensor,
    g: Tensor,
    state: Mapping[str, Tensor],
    clip_coef: float | Tensor | None,
    *,
    seed: int,
    element: int,
) -> None:
    """Update in place where `adam_applies` holds; `g` is only read, the rest is as for `update.apply`."""
    library = load()
    assert library is not None
    _call(library, flavours()[bool(hyper.get("fused"))], hyper, step, p, g, state, clip_coef, seed, element)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The shared library, or None if it is absent or switched off."""
    if os.environ.get("OPENWAFER_NATIVE", "1") == "0":
        return None
    path = Path(__file__).with_name("_kernels.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        _LOG.warning("native kernels not loaded (%s): the pure-torch optimizer path runs, exact and slower", error)
        return None
    pointers = [ctypes.c_void_p] * 5
    library.openwafer_adam.argtypes = [*pointers, ctypes.c_size_t, ctypes.POINTER(_AdamArgs)]
    library.openwafer_adam.restype = None
    return library


@functools.cache
def flavours() -> dict[bool, _Root]:
    """Values of `fused` that the library reproduces bit for bit here -> the square root to use."""
    library = load()
    if library is None:
        return {}
    found = {}
    for fused in (False, True):
        roots = [root for root in (_EXACT, _mkl_root()) if _agrees(library, fused, root)]
        if roots:
            found[fused] = roots[0]
        else:
            _LOG.warning(
                "native kernels differ from torch %s on this machine (AdamW, fused=%s): "
                "the pure-torch optimizer path runs, exact and slower",
                torch.__version__,
                fused,
            )
    return found


def _mkl_root() -> _Root:
    """MKL's vector square root inside torch, or `_EXACT` where torch is built without it.

    torch.sqrt calls it on x86; its results are up to 0.75 units in the last place off, so no other root has its bits.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = library.vmsSqrt, library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return _EXACT
    root, threads = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    return root, threads


def _call(
    library: ctypes.CDLL,
    root: _Root,
    hyper: Mapping[str, Any],
    step: int,
    p: Tensor,
    g: Tensor,
    state: Mapping[str, Tensor],
    clip_coef: float | Tensor | None,
    seed: int,
    element: int,
) -> None:
    lr, (beta1, beta2), weight_decay = hyper["lr"], hyper["betas"], hyper["weight_decay"]
    decoupled, fused = hyper["decoupled_weight_decay"], bool(hyper.get("fused"))
    correction2 = 1 - beta2 ** float(step)
    narrow = state["exp_avg"].dtype == torch.bfloat16
    args = _AdamArgs(
        vml_sqrt=root[0],
        vml_threads=root[1],
        element=element,
        clip_coef=1.0 if clip_coef is None else float(clip_coef),
        decay=1 - lr * weight_decay if decoupled else 1.0,
        l2=0.0 if decoupled else weight_decay,
        weight1=1 - beta1,
        beta2=beta2,
        weight2=1 - beta2,
        correction2_sqrt=math.sqrt(correction2) if fused else correction2**0.5,
        eps=hyper["eps"],
        step=-(lr / (1 - beta1 ** float(step))),
        has_clip=clip_coef is not None,
        has_l2=not decoupled and weight_decay != 0,
        maximize=hyper["maximize"],
        grad_bf16=g.dtype == torch.bfloat16,
        moments_bf16=narrow,
        fused=fused,
    )
    if narrow:
        args.key[0], args.key[1] = rounding_key(seed, step, 0), rounding_key(seed, step, 2)
    m, v = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
    top = state["max_exp_avg_sq"].data_ptr() if hyper["amsgrad"] else None
    library.openwafer_adam(p.data_ptr(), g.data_ptr(), m, v, top, p.numel(), args)


def _agrees(library: ctypes.CDLL, fused: bool, root: _Root) -> bool:
    """Two updates of a few thousand values against torch.optim, with and without decoupled decay and amsgrad."""
    generator = torch.Generator().manual_seed(0)
    # Said in full, for the caller may have another default dtype or device.
    draw = functools.partial(torch.randn, 4109, generator=generator, dtype=torch.float32, device="cpu")
    for kind, amsgrad in ((AdamW, False), (Adam, True)):
        start = draw()
        param = torch.nn.Parameter(start.clone())
        optimizer = kind([param], lr=1e-2, weight_decay=0.1, amsgrad=amsgrad, fused=fused)
        group = optimizer.param_groups[0]
        state = {name: torch.zeros_like(start) for name in _STATE[: 3 if amsgrad else 2]}
        for step in (1, 2):
            grad = draw() * draw().exp()
            param.grad = grad.clone()
            optimizer.step()
            _call(library, root, group, step, start, grad, state, None, 0, 0)
        held = optimizer.state[param]
        if not torch.equal(start, param.detach()) or any(not torch.equal(held[name], state[name]) for name in state):
            return False
    return True
