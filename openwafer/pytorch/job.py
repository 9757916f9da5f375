"""`compile(model, ...)` makes a Job: the model, its pages in the store, and the streamer between them.

A step is a forward and a backward over all micro-batches, then `update`, which orders the optimizer step and returns:
each page is updated on its way in before its next use. A job says nothing about data, files of a run or progress.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from openwafer.base import machine
from openwafer.base.errors import ConfigError, RefusedError, StoreCorrupt, StoreError
from openwafer.base.events import StepRecord
from openwafer.base.units import parse_bytes
from openwafer.pytorch import batch as batches
from openwafer.pytorch import random_state
from openwafer.pytorch.accumulate import Accumulator
from openwafer.pytorch.assembly import fill, groups_of, page_spec, require_ordinary
from openwafer.pytorch.boundary import Boundary, capture_buffers, json_copy, like, plain, put_buffers
from openwafer.pytorch.construct import nursery_of
from openwafer.pytorch.device import Device, open_device
from openwafer.pytorch.engine import Engine
from openwafer.pytorch.export import save_tensors
from openwafer.pytorch.forecast import Forecast
from openwafer.pytorch.memory import MemoryPlan
from openwafer.pytorch.partition import Partition, Selector, partition
from openwafer.pytorch.planning import RING_CHUNKS, Planner, base_bytes
from openwafer.streaming import heap
from openwafer.streaming.link import Link
from openwafer.streaming.resident import Ticket
from openwafer.streaming.store import Store
from openwafer.streaming.streamer import Streamer
from openwafer.streaming.update import OptimizerSpec, snapshot
from openwafer.streaming.window import Window

PRECISIONS = ("bf16", "fp32")
MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compile(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] | None = None,
    memory: str | int | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    precision: str = "bf16",
    clip_norm: float | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    scheduler: Any = None,
    commit_every: int = 1,
    layers: Selector | None = None,
    keep: Sequence[str] | str = "auto",
    moments: str = "fp32",
    limit: str | int | None = None,
    example: Any = None,
    micro_batches: int = 1,
    device: str | torch.device | Link | None = None,
    device_memory: str | int | None = None,
    optimizer_device: str = "auto",
) -> Job:
    """Prepare a model to be trained (or only run) by streaming.

    Args:
        model: any module on the CPU; built plainly, or under `init`.
        optimizer: an instance made over the model's parameters, or a function of them. It keeps the hyperparameters
            (a learning rate scheduler may hold it); its `step` and `zero_grad` become the job's. None: no training.
        memory: budget for the whole process, e.g. "2GiB"; None keeps everything in memory.
        store: folder of the state, or None to keep it in memory; by default the one the model was made in.
            If it holds a committed state of this model, the job goes on from there.
        precision: "bf16" runs under `torch.autocast` with fp32 weights, "fp32" runs the model as it is.
        clip_norm: as `torch.nn.utils.clip_grad_norm_`.
        loss: function of (output, batch); by default the model returns its loss.
        scheduler: a torch.optim.lr_scheduler, stepped after every update and saved with the state.
        commit_every: steps between commits.
        layers: names, patterns or a predicate, in place of the search for layers.
        keep: names of layers that keep their activations instead of recomputing them, or "auto".
        moments: "fp32", or "bf16": optimizer state in bf16 with stochastic rounding.
        limit: layers larger than this are cut further.
        example: a batch as `step` will get it (with `micro_batches`): the budget is checked and divided here and now
            rather than at the first step.
        device: where the model computes: None for the CPU, "auto" for this machine's accelerator, or its name. Buffers
            and batches given to `step` are moved there, and back when the job is closed.
        device_memory: budget on the device, e.g. "24GiB"; by default nine tenths of what is free.
        optimizer_device: where updates are computed, "host" or "device"; "auto" takes the faster one, and in a run that
            goes on the one it began with, since they round differently.

    Raises:
        ConfigError: an option is wrong, or there is no such device.
        BudgetError: the memory budget is too small; names the smallest that works.
        RefusedError: something that cannot be streamed exactly.
        StoreError: the store is locked, damaged, or holds another model.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if moments not in MOMENTS:
        raise ConfigError(f"moments must be one of {', '.join(MOMENTS)}, got {moments!r}")
    if commit_every < 1:
        raise ConfigError(f"commit_every counts steps and must be at least 1, got {commit_every}")
    if clip_norm is not None and not clip_norm > 0:
        raise ConfigError(f"clip_norm must be positive, got {clip_norm}; leave it out for no clipping")
    made = next((n for p in model.parameters() if (n := nursery_of(p)) is not None), None)
    if store is None and made is not None:
        store = made.store
    if made is not None and not isinstance(store, Store):
        if Path(os.fspath(store)).absolute() != made.store.path:  # type: ignore[arg-type]
            raise ConfigError(f"the model was made in {made.store.path}, not in {store}: give one store to both")
        store = made.store
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.parameters())
    place = open_device(device, device_memory, optimizer_device)
    cut = partition(model, layers=layers, limit_bytes=None if limit is None else parse_bytes(limit))
    owner = store if isinstance(store, Store) else Store(store)
    try:
        return Job(
            model,
            owner,
            cut,
            optimizer,
            memory_bytes=None if memory is None else parse_bytes(memory),
            precision=precision,
            clip_norm=clip_norm,
            loss=loss,
            scheduler=scheduler,
            commit_every=commit_every,
            keep=keep,
            moments=MOMENTS[moments],
            example=example,
            micro_batches=micro_batches,
            device=place,
        )
    except BaseException:
        if owner is not store:
            owner.close()
        raise


class Job:
    """A model under streaming. Made by `compile`; close it (or use it in a `with`) to give the memory back."""

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        cut: Partition,
        optimizer: torch.optim.Optimizer | None,
        *,
        memory_bytes: int | None,
        precision: str,
        clip_norm: float | None,
        loss: Callable[[Any, Any], torch.Tensor] | None,
        scheduler: Any,
        commit_every: int,
        keep: Sequence[str] | str,
        moments: torch.dtype,
        example: Any,
        micro_batches: int,
        device: Device | None = None,
    ):
        self.model = model
        self.store = store
        self.optimizer = optimizer
        self.memory_bytes = memory_bytes
        self.precision = precision
        self.clip_norm = clip_norm
        self.scheduler = scheduler
        self.commit_every = commit_every
        self.step_count = 0
        self.durable_step = 0
        self.extra: dict[str, Any] = {}
        self.notes: list[str] = []
        self._loss = loss
        self._cut = cut
        self._last_loss: float = math.nan
        self._torn = False
        self._updates_on = "host"
        self._applied: MemoryPlan | None = None
        require_ordinary(model)
        groups = groups_of(model, cut, optimizer)
        self._spec = None if optimizer is None else OptimizerSpec.of(optimizer, moments=moments)
        self._specs = [page_spec(number, page, groups, optimizer, self._spec) for number, page in enumerate(cut.pages)]
        self.device = device
        self.engine = Engine(model, cut, precision, None if device is None else device.link)
        self._accumulator = Accumulator(self.engine)
        self._keep = keep
        self.engine.keep = self._layers_to_keep(keep)
        self.planner = Planner(store, self._specs, self.engine, memory_bytes, self._forward_loss, device)
        self.planner.refuse_hopeless(self._base_without_parameters())
        resumed = store.attach(self._specs)
        self._streamer, self._front = self._make_streamer()
        try:
            self._begin(resumed)
            if example is not None:
                self._configure(batches.split(example, micro_batches))
        except BaseException:
            self._give_up()
            raise

    def _begin(self, resumed: bool) -> None:
        fill(self._cut, self.store, self._streamer, self.engine, resumed)
        if self.device is not None:
            self.device.move(self._beside_pages())
        self.engine.attach(self._front)
        self._buffers_sum: int | None = None
        if resumed:
            self._resume()
        before = self._updates_on if resumed else None
        self._updates_on = "host"
        if self.device is not None and self.device.computes_updates(self._spec, before):
            self._updates_on = "device"
            self._streamer.update_over(self.device.link)
        if self.optimizer is not None:
            self._take_over(self.optimizer)
        self._boundary = self._capture()
        self._front.start()
        if not resumed and self.store.path is not None:
            self._order_commit(self._boundary)
            self._streamer.wait_committed()
        self.closed = False

    # --- making -----------------------------------------------------------------------------------------------------

    def _layers_to_keep(self, keep: Sequence[str] | str) -> set[int]:
        if isinstance(keep, str):
            if keep not in ("auto", "all", "none"):
                raise ConfigError(f"keep must be 'auto', 'all', 'none' or names of layers, got {keep!r}")
            return set(range(len(self._cut.layers))) if keep == "all" else set()
        names = {layer.name: number for number, layer in enumerate(self._cut.layers)}
        for name in keep:
            if name not in names:
                raise ConfigError(f"keep: no layer is called {name!r}; layers: {', '.join(list(names)[:8])} ...")
        return {names[name] for name in keep}

    def _base_without_parameters(self) -> int:
        """The resident set as it will be once the parameters have moved into their pages."""
        inside = sum(param.untyped_storage().nbytes() for page in self._cut.pages for _, param in page.params)
        return max(0, machine.current_rss_bytes() - inside)

    def _make_streamer(self) -> tuple[Streamer, Streamer | Window]:
        """A streamer that can load any layer, and what the engine sees of it; `_configure` gives it the budget."""
        pool, grads = None, None
        if self.store.path is not None and self.memory_bytes is not None:
            layers = self._cut.layers
            pool = max((sum(self._specs[i].param_bytes for i in layer.pages) for layer in layers), default=0)
            pool += sum(self._specs[i].param_bytes for i in self._cut.shared)
            grads = 0
        device, engine = self.device, self.engine
        streamer = Streamer(
            self.store,
            self._specs,
            self._spec,
            pool_bytes=pool,
            grad_bytes=grads,
            ring_chunks=RING_CHUNKS,
            bind=engine.bind if device is None else lambda page, views: None,
            unbind=engine.unbind if device is None else lambda page: None,
        )
        if device is None:
            return streamer, streamer
        return streamer, Window(streamer, device.link, bind=engine.bind, unbind=engine.unbind)

    def _configure(self, parts: Sequence[Any]) -> None:
        """Divide the memory budget for batches like this one."""
        if self.planner.is_new(parts):
            self.planner.make_plan(parts, base_bytes(self._front.memory_bytes))
        plan = self.planner.plan
        if self._applied is plan and plan is not None:
            return
        self._applied = plan
        if self.planner.note is not None:
            self.notes.append(self.planner.note)
            self.planner.note = None
        if self._keep == "auto":
            self.engine.keep = set(self.planner.keep)
        if isinstance(self._front, Window) and self.planner.device_plan is not None:
            self._front.pool_bytes = self.planner.device_plan.pool_bytes
        if plan is None:
            return
        self._accumulator.group = plan.group if plan.group < len(parts) else None
        assert self.memory_bytes is not None
        heap.reuse()
        self.engine.growth_bytes = self.planner.growth_bytes()
        self.engine.heap.watch(self.memory_bytes - heap.MARGIN_BYTES)
        if self.store.path is not None:
            self._front.configure(plan.pool_bytes, plan.grad_bytes, plan.resident)

    def _take_over(self, optimizer: torch.optim.Optimizer) -> None:
        """The user's optimizer goes on holding the hyperparameters; stepping it steps the job."""
        job = weakref.proxy(self)

        def step(closure: Callable | None = None) -> None:
            if closure is not None:
                raise RefusedError(
                    "optimizer.step(closure) evaluates the model inside the step: call step() without one"
                )
            job.update()
            job.engine.stale_gradients = True

        def zero_grad(set_to_none: bool = True) -> None:
            job.zero_grad(set_to_none)

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # schedulers look for it
        optimizer.step = step  # type: ignore[method-assign, assignment]
        optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
        optimizer._opt_called = True  # type: ignore[attr-defined]

    # --- state ------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        groups = [] if self.optimizer is None else [plain(snapshot(g)) for g in self.optimizer.param_groups]
        return {
            "step": self.step_count,
            "random": random_state.save(self.engine.generators),
            "groups": groups,
            "scheduler": None if self.scheduler is None else plain(self.scheduler.state_dict()),
            "extra": json_copy(self.extra),
            "plain_order": self._accumulator.plain_order,
            "optimizer_device": self._updates_on,
        }

    def _resume(self) -> None:
        assert self.store.manifest is not None
        try:
            self._load_state(self.store.manifest["state"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(
                f"{self.store.path}: the committed state is not what this job would have written ({error!r}). "
                "Give the optimizer groups and the scheduler it was made with, or use another store"
            ) from error
        put_buffers(self._buffer_tensors(), self.store.read_buffers())

    def _load_state(self, state: dict[str, Any]) -> None:
        if type(state["step"]) is not int or not isinstance(state["extra"], dict):
            raise TypeError("its step is no number or its extra no table")
        self.step_count = self.durable_step = state["step"]
        self.extra = state["extra"]
        self._accumulator.plain_order = state["plain_order"]
        self._updates_on = state.get("optimizer_device", "host")
        random_state.restore(state["random"], self.engine.generators)
        if self.optimizer is not None:
            for group, saved in zip(self.optimizer.param_groups, state["groups"], strict=True):
                group.update({key: like(group.get(key), value) for key, value in saved.items()})
        if self.scheduler is not None and state["scheduler"] is not None:
            now = vars(self.scheduler)
            self.scheduler.load_state_dict({k: like(now.get(k), v) for k, v in state["scheduler"].items()})
        for page, steps in zip(self._streamer.pages, state["steps"], strict=True):
            page.steps = [int(step) for step, _ in zip(steps, page.steps, strict=True)]

    def _beside_pages(self) -> list[torch.Tensor]:
        return [*(tensor for _, tensor in self._cut.left), *self.model.buffers()]

    def _buffer_tensors(self) -> list[torch.Tensor]:
        return [tensor.data for tensor in self._beside_pages()]

    def _capture(self) -> Boundary:
        """The state besides the pages, as it is now; buffers only if they differ from those last committed."""
        buffers, buffers_sum = capture_buffers(self._buffer_tensors(), self._buffers_sum)
        return Boundary(self._state(), buffers, buffers_sum)

    def _order_commit(self, boundary: Boundary) -> None:
        """Commit this state once every ordered update is applied."""
        self._buffers_sum = boundary.buffers_sum
        self._streamer.commit_when_updated(boundary.state, boundary.buffers, self._committed(boundary.state["step"]))

    def _committed(self, step: int) -> Callable[[], None]:
        def done() -> None:
            self.durable_step = step

        return done

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, by streaming; tensors among the arguments go to the device that computes."""
        self._require_open()
        if self.device is not None:
            args, kwargs = self.device.put((args, kwargs))
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Job:
        """As `nn.Module.train`."""
        self.model.train(mode)
        return self

    def eval(self) -> Job:
        """As `nn.Module.eval`."""
        return self.train(False)

    def step(self, batch: Any, micro_batches: int = 1) -> StepRecord:
        """One optimizer step on a batch, cut into micro-batches that share every layer's load.

        Under a memory budget they may do so in several rounds, where that leaves room to keep activations and the
        forecast is faster; bits do not depend on it, `forecast` tells.

        The gradient is that of the sum of the token losses over all valid targets of the step divided by their
        number: each micro-batch's mean loss counts with its share of them.

        Returns:
            What the step did, cost and waited for.
        """
        started = time.perf_counter()
        io = self.store.io
        read, written, busy_s = io.bytes_read, io.bytes_written, io.busy_s
        stalls = dict(self._streamer.stall_s)
        rate = None if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])
        self.backward(batch, micro_batches)
        norm, skipped = self.update()
        notes, self.notes, self._accumulator.notes = (*self.notes, *self._accumulator.notes), [], []
        return StepRecord(
            step=self.step_count,
            loss=self._last_loss,
            grad_norm=norm,
            tokens=batches.num_targets(batch),
            seconds=time.perf_counter() - started,
            bytes_read=io.bytes_read - read,
            bytes_written=io.bytes_written - written,
            stall_s={k: v - stalls.get(k, 0.0) for k, v in self._streamer.stall_s.items()},
            skipped=skipped,
            learning_rate=rate,
            peak_rss_bytes=machine.peak_rss_bytes(),
            schedule=self.schedule,
            durable_step=self.durable_step,
            io_s=io.busy_s - busy_s,
            notes=notes,
        )

    def forecast(self, batch: Any, micro_batches: int = 1) -> Forecast:
        """What steps on batches like this one will take; nothing is run.

        Raises:
            BudgetError: the memory budget is too small for it.
        """
        self._require_open()
        return self.planner.forecast(batches.split(batch, micro_batches), base_bytes(self._front.memory_bytes))

    @property
    def plain_order(self) -> str | None:
        """Why micro-batches must run one after another; None: they can share a layer's load."""
        return self._accumulator.plain_order

    @property
    def schedule(self) -> str:
        """How the layers run, in a few words."""
        kept = len(self.engine.keep)
        order = self._accumulator.order
        return f"{order}, {kept} of {len(self._cut.layers)} layers keep activations"

    def backward(self, batch: Any, micro_batches: int = 1) -> float:
        """Forward and backward of a batch; gradients add up until `update`. Returns the loss."""
        self._require_open()
        parts = batches.split(batch, micro_batches)
        counts = [batches.num_targets(part) for part in parts]
        total = sum(counts)
        if total == 0:
            raise ConfigError("the batch has no valid target: every label is -100")

        def forward_backward(index: int) -> torch.Tensor:
            loss = self._forward_loss(parts[index] if self.device is None else self.device.put(parts[index]))
            if len(parts) > 1:
                equal = counts[index] * len(parts) == total
                loss = loss / len(parts) if equal else loss * (counts[index] / total)
            self.engine.claim_graph(loss)
            loss.backward()
            return loss.detach()

        self._configure(parts)
        self.engine.open_cycle("train")
        losses = self._accumulator.run(len(parts), forward_backward)
        self._last_loss = float(torch.stack([loss.float() for loss in losses]).sum())
        return self._last_loss

    def _forward_loss(self, part: Any) -> torch.Tensor:
        bf16 = self.precision == "bf16"
        with torch.autocast(self.engine.device_type, dtype=torch.bfloat16) if bf16 else nullcontext():
            output = batches.call(self.model, part)
            return batches.find_loss(output) if self._loss is None else self._loss(output, part)

    # --- update -----------------------------------------------------------------------------------------------------

    def update(self) -> tuple[float | None, bool]:
        """The optimizer step for the gradients so far: ordered now, applied to each page before its next use.

        Returns:
            The global gradient norm, and whether the step was skipped because a gradient is NaN or Inf.
        """
        self._require_open()
        if self.optimizer is None:
            raise ConfigError("this job has no optimizer: give one to compile")
        if torch.is_autocast_enabled(self.engine.device_type) and torch.is_autocast_cache_enabled():
            raise RefusedError(
                "an optimizer step inside an autocast region: plain PyTorch would go on with casts of the old "
                "parameters. Leave the region first, or use torch.autocast(..., cache_enabled=False)"
            )
        self.engine.rest()
        streamer = self._streamer
        if streamer.pending():
            streamer.flush()
        streamer.wait_committed()
        norms = self._norms_in_order()
        norm = torch.linalg.vector_norm(torch.stack(norms)).cpu() if norms else torch.zeros(())
        finite = bool(torch.isfinite(norm)) or self._all_finite()
        self._torn = True
        self.step_count += 1
        if finite and norms:
            coef = None
            if self.clip_norm is not None:
                coef = torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
            hyper = tuple(snapshot(group) for group in self.optimizer.param_groups)
            try:
                self._front.issue(Ticket(hyper, coef, self.step_count % self.commit_every == 0))
            except StoreError:
                self._torn = False  # the streamer has stopped, commits nothing, and goes on saying why
                raise
        elif not finite:
            self.engine.forget_gradients()
            self.notes.append(f"step {self.step_count} skipped: the gradient holds NaN or Inf; no state was touched")
        self.engine.norms.clear()
        self.engine.updates += 1
        if self.scheduler is not None:
            self.scheduler.step()
        self._boundary = self._capture()
        if self.store.path is not None and self.step_count % self.commit_every == 0:
            self._order_commit(self._boundary)
        self._torn = False
        self.engine.close_cycle()
        return float(norm), not finite

    def _norms_in_order(self) -> list[torch.Tensor]:
        """The norm of every gradient, in the order of `clip_grad_norm_(model.parameters())`: by dtype."""
        where = self.engine.page_of
        keys = [where[id(p)] for p in self.model.parameters() if id(p) in where]
        norms = [self.engine.norms[key] for key in keys if key in self.engine.norms]
        if len({norm.dtype for norm in norms}) < 2:
            return norms
        groups = _group_tensors_by_device_and_dtype([norms])  # type: ignore[list-item]  # as clip_grad_norm_ does
        return [norm for (same_dtype, *_), _ in groups.values() for norm in same_dtype]  # type: ignore[misc]

    def _all_finite(self) -> bool:
        """Whether the gradients are finite although their norm is not (it may overflow)."""
        return all(bool(torch.isfinite(grad).all()) for _, grad in self.gradients())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients that no update has used yet."""
        self.engine.zero_grad(set_to_none)

    # --- looking in -------------------------------------------------------------------------------------------------

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and gradients, as they are before clipping, between `backward` and `update`; a page at a time."""
        self.engine.rest()
        for number, page in enumerate(self._cut.pages):
            runtime = self._streamer.pages[number]
            if runtime.pending is not None or not runtime.grads.present:
                continue
            grads = self._streamer.take_gradients(number)
            try:
                for index, grad in grads.items():
                    yield page.params[index][0], grad
            finally:
                self._streamer.stash(number, grads)

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values, up to date, a page at a time; copy what you keep."""
        for number, page in enumerate(self._cut.pages):
            self._streamer.acquire([number], "reading")
            try:
                for (name, _), value in zip(page.params, self._streamer.pages[number].param_views(), strict=True):
                    yield name, value
            finally:
                self._streamer.release([number])
        for name, tensor in self._cut.left:
            yield name, tensor.detach().cpu()

    def state_dict(self) -> OrderedDict[str, torch.Tensor]:
        """A copy of the model's state, all of it in memory; `save` streams it to disk instead."""
        self._settle()
        values = {name: value.clone() for name, value in self.named_parameters()}
        return self._as_state_dict(values)

    def _as_state_dict(self, values: Mapping[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        names = {id(param): name for name, param in self.model.named_parameters()}
        result: OrderedDict[str, torch.Tensor] = OrderedDict()
        for key, tensor in self.model.state_dict(keep_vars=True).items():
            result[key] = values[names[id(tensor)]] if id(tensor) in names else tensor.detach().clone().cpu()
        return result

    def optimizer_state(self) -> Iterator[tuple[str, dict[str, torch.Tensor | int]]]:
        """Names and optimizer state, a page at a time; copy what you keep."""
        self._settle()
        for number, page in enumerate(self._cut.pages):
            spec = self._specs[number]
            if not spec.trainable:
                continue
            buffers = self._streamer.state_of(number)
            for index, (name, _) in enumerate(page.params):
                param = spec.params[index]
                state: dict[str, torch.Tensor | int] = {"step": self._streamer.pages[number].steps[index]}
                for position, tensor in enumerate(param.state):
                    if spec.elementwise:
                        view = buffers[position].view(tensor.dtype, param.offset, param.numel)
                    else:
                        size = math.prod(tensor.shape) * tensor.dtype.itemsize
                        offset = param.aux_offsets[position]
                        view = buffers[0].tensor[offset : offset + size].view(tensor.dtype)
                    state[tensor.name] = view.view(tensor.shape)
                yield name, state

    def _settle(self) -> None:
        """Apply every ordered update."""
        self._require_open()
        self.engine.rest()
        self._streamer.flush()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model's parameters and buffers as safetensors into a new folder, a page at a time.

        Raises:
            ConfigError: the folder exists.
            StoreFull, StoreIOError: the file system does not take it.
        """
        self._settle()
        path = Path(folder)
        buffers = ((name, buffer.cpu()) for name, buffer in self.model.named_buffers() if name in self._persistent())
        save_tensors(itertools.chain(self.named_parameters(), buffers), path)
        return path

    def _persistent(self) -> set[str]:
        """Names in the state dict."""
        return set(self.model.state_dict(keep_vars=True))

    # --- durability -------------------------------------------------------------------------------------------------

    def commit(self, extra: Mapping[str, Any] | None = None) -> None:
        """Make the state after the last update durable, now.

        Args:
            extra: JSON kept with the state and found in `job.extra` on resuming.

        Raises:
            StoreError: the last update was interrupted half-way: only the commit before it is whole.
        """
        self._require_open()
        if extra is not None:
            self.extra = dict(extra)
        self._settle()
        self._streamer.wait_committed()
        if self.store.path is not None and (self.durable_step != self.step_count or extra is not None):
            # In the middle of a step the random state and the buffers have moved on: those of its beginning count.
            if not self.engine.mid_step:
                self._boundary = self._capture()
            elif extra is not None:
                self._boundary.state["extra"] = json_copy(self.extra)
            self._order_commit(self._boundary)
            self._streamer.wait_committed()

    def set_extra(self, extra: Mapping[str, Any]) -> None:
        """JSON that the commits of the steps to come carry; set it before the step it belongs to."""
        self.extra = dict(extra)

    def snapshot(self, name: str) -> Path:
        """Commit, and keep that state under a name; costs a manifest and hard links."""
        self.commit()
        return self.store.snapshot(name)

    def close(self) -> None:
        """Commit the state after the last update, stop streaming, give the memory back.

        With a store on disk the model is empty afterwards; without one it keeps its parameters. What was interrupted
        in the middle is dropped: of a step, its gradients; of an update, everything since the last commit.
        """
        if self.closed:
            return
        try:
            if not self._torn:
                self._finish()
        finally:
            self._give_up()
            self.store.close()

    def _give_up(self) -> None:
        """Stop, and leave the model as it is without a job."""
        self.closed = True
        self.engine.detach()
        self._front.close()
        if self.device is not None:
            self.device.move_back(self._beside_pages())

    def _finish(self) -> None:
        """Apply every ordered update, and commit the state as it was when the last of them was ordered."""
        if self.engine.mid_step:
            self.engine.forget_gradients()
        else:
            self.engine.rest()
        self._streamer.flush()
        self._streamer.wait_committed()
        if self.store.path is not None and self.durable_step != self.step_count:
            self._order_commit(self._boundary)
            self._streamer.wait_committed()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Close without committing: the store stays at its last commit."""
        if not self.closed:
            self._give_up()
            self.store.close()

    def _require_open(self) -> None:
        if self.closed:
            raise ConfigError("this job is closed: compile the model again to go on")
        if self._torn:
            raise StoreError(
                f"the update of step {self.step_count} was interrupted half-way. Close the job and compile the model "
                f"again to go on from step {self.durable_step}"
            )

    closed = True
