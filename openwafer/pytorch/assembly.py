"""Lays a model out in pages and moves its parameters there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from openwafer.base.errors import ConfigError, RefusedError
from openwafer.pytorch.construct import nursery_of
from openwafer.pytorch.engine import Engine
from openwafer.pytorch.partition import PageParams, Partition
from openwafer.streaming.files import Buffer
from openwafer.streaming.page import PageSpec, ParamSpec, layout_page
from openwafer.streaming.store import Store
from openwafer.streaming.streamer import Streamer
from openwafer.streaming.update import OptimizerSpec, state_layout


def require_ordinary(model: nn.Module) -> None:
    """Parameters are dense tensors of their own, on the CPU.

    Raises:
        RefusedError: one is not.
    """
    spans: dict[int, list[tuple[int, int, str]]] = {}
    params = {id(param) for param in model.parameters()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in params and nursery_of(tensor) is not None:  # type: ignore[arg-type]
            continue
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise RefusedError(
                f"{name} is {tensor.layout} on the device {tensor.device.type!r}: make the model's tensors dense ones "
                "in memory, or the whole model under openwafer.init"
            )
        size = tensor.numel() * tensor.element_size()
        if not size or tensor.untyped_storage().nbytes() < size:
            continue
        if id(tensor) in params and not tensor.is_contiguous():
            raise RefusedError(
                f"{name} is not contiguous (strides {tensor.stride()}), and another memory layout gives other bits: "
                f"make it so before compile, {name}.data = {name}.data.contiguous()"
            )
        start = tensor.data_ptr()
        spans.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, start + size, name))
    names = {name for name, _ in model.named_parameters()}
    for parts in spans.values():
        for (_, end, name), (start, _, other) in itertools.pairwise(sorted(parts)):
            if start < end and names & {name, other}:
                raise RefusedError(
                    f"{name} and {other} are different tensors in the same memory: make them one Parameter to tie them"
                )


def groups_of(model: nn.Module, cut: Partition, optimizer: torch.optim.Optimizer | None) -> dict[int, int]:
    """The optimizer group of each parameter; parameters it does not have are not trained."""
    trainable = {id(p): name for page in cut.pages if page.trainable for name, p in page.params}
    if optimizer is None:
        return {}
    groups = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
    unknown = [key for key in groups if key not in {id(p) for p in model.parameters()}]
    if unknown:
        raise ConfigError(
            f"{len(unknown)} parameters of the optimizer are not the model's: make it from this model's "
            "parameters(), after every change to the model"
        )
    held = sum(bool(optimizer.state.get(p)) for group in optimizer.param_groups for p in group["params"])
    if held:
        raise RefusedError(
            f"the optimizer has state already, for {held} parameters: it has stepped before, and streaming begins with "
            "none. Make a new optimizer"
        )
    graded = [name for name, param in model.named_parameters() if param.grad is not None]
    if graded:
        raise RefusedError(
            f"{len(graded)} parameters hold a gradient already, e.g. {graded[0]!r}, to which plain PyTorch would add: "
            "call zero_grad() before compile"
        )
    missing = [name for key, name in trainable.items() if key not in groups]
    if missing:
        raise ConfigError(
            f"{len(missing)} parameters require gradients but are not in the optimizer, e.g. {missing[0]!r}: "
            "add them, or set requires_grad_(False)"
        )
    return groups


def page_spec(
    number: int,
    page: PageParams,
    groups: dict[int, int],
    optimizer: torch.optim.Optimizer | None,
    spec: OptimizerSpec | None,
) -> PageSpec:
    """The layout of one page with the state its optimizer keeps."""
    params = []
    for name, param in page.params:
        group = groups.get(id(param), 0)
        state: Sequence[Any] = ()
        if page.trainable and spec is not None and optimizer is not None:
            state = state_layout(spec, optimizer.param_groups[group], param.shape, param.dtype)
        params.append((name, tuple(param.shape), group, state))
    names = {tuple(t.name for t in state) for _, _, _, state in params}
    elementwise = spec is None or spec.elementwise
    if elementwise and len(names) > 1:
        raise RefusedError(f"page {page.name!r} mixes optimizer groups with different state: {sorted(names)}")
    trainable = page.trainable and spec is not None
    return layout_page(number, page.name, page.params[0][1].dtype, trainable, params, elementwise)


def fill(cut: Partition, store: Store, streamer: Streamer, engine: Engine, resumed: bool) -> None:
    """Move the parameters into their pages; their own memory is given back."""
    nurseries = {id(n): n for page in cut.pages for _, p in page.params if (n := nursery_of(p)) is not None}
    for _, tensor in cut.left:
        if (nursery := nursery_of(tensor)) is not None:
            tensor.data = nursery.load(tensor)
            nursery.release(tensor)
    for number, (page, runtime) in enumerate(zip(cut.pages, streamer.pages, strict=True)):
        spec = runtime.spec
        slab, flat = None, None
        if not resumed:
            for nursery in nurseries.values():
                nursery.lend(spec.param_bytes)
            slab = Buffer(spec.param_bytes)
            flat = slab.view(spec.dtype, 0, spec.numel)
        for (_, param), where in zip(page.params, spec.params, strict=True):
            if flat is not None:
                _move(param, where, flat[where.offset : where.offset + where.numel])
            param.data = engine.poison(param)
        if runtime.stored is None:
            assert slab is not None
            streamer.place(number, slab, [Buffer(region.num_bytes) for region in spec.regions[1:]])
        elif not resumed:
            assert slab is not None
            _write_first(store, number, slab)
    for nursery in nurseries.values():
        nursery.clear()


def _move(param: nn.Parameter, where: ParamSpec, flat: torch.Tensor) -> None:
    """Put a parameter's values into its place in a page."""
    nursery = nursery_of(param)
    if nursery is not None:
        nursery.load_into(flat, param)
        nursery.release(param)
        return
    values = param.data
    if values.untyped_storage().nbytes() < values.numel() * values.element_size():
        raise ConfigError(
            f"{where.name} is empty: a job that was closed has taken the model's parameters along. Build "
            "the model anew, or compile it with the store of that job to go on from there"
        )
    flat.copy_(values.reshape(-1))


def _write_first(store: Store, number: int, slab: Buffer) -> None:
    """The first contents of a page: its parameters, and state of zeros that need not be written."""
    stored = store.pages[number]
    spec = stored.spec
    futures = []
    for chunk in range(spec.regions[0].num_chunks):
        start, stop = spec.regions[0].chunk_range(chunk)
        futures.append(store.write(stored.source, spec, 0, chunk, slab.bytes[start:stop]))
    for future in futures:
        store.io.wait(future, f"writing {spec.name}")
    store.zero_state(stored)
