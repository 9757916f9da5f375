"""Turns a job's memory budget into settings of its streamer, as soon as the shape of a batch is known.

Before a batch is known only the parameters can be counted; that is enough to refuse a hopeless budget at once. The
first batch of every new shape is profiled in a child process, and the budget divided anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from openwafer.base import machine
from openwafer.base.errors import BudgetError
from openwafer.base.units import format_bytes
from openwafer.pytorch.device import Device
from openwafer.pytorch.engine import Engine
from openwafer.pytorch.forecast import Forecast
from openwafer.pytorch.memory import (
    Demand,
    MemoryPlan,
    compute_seconds,
    describe,
    divide,
    divide_rounds,
    in_memory,
    io_seconds,
    least,
)
from openwafer.pytorch.profile import Profile, profile, profile_here
from openwafer.streaming import heap
from openwafer.streaming.page import CHUNK_ELEMENTS, PageSpec
from openwafer.streaming.probe import Rates, probe, probe_device
from openwafer.streaming.store import Store

log = logging.getLogger("openwafer")

RING_CHUNKS = 12


class Planner:
    """Divides one job's budget.

    Args:
        run: forward and loss of one micro-batch.
        device: where activations are, if that is not host memory.
    """

    def __init__(
        self,
        store: Store,
        specs: Sequence[PageSpec],
        engine: Engine,
        budget_bytes: int | None,
        run: Callable[[Any], torch.Tensor],
        device: Device | None = None,
    ):
        self.store = store
        self.specs = tuple(specs)
        self.engine = engine
        self.budget_bytes = budget_bytes
        self.plan: MemoryPlan | None = None
        self.demand: Demand | None = None
        self.device = device
        self.device_plan: MemoryPlan | None = None
        self.device_demand: Demand | None = None
        self.note: str | None = None
        self._run = run
        self._rates: Rates | None = None
        self._seen: object = None

    @property
    def state_bytes(self) -> int:
        """Master parameters, optimizer state and gradients of the model."""
        return sum(s.param_bytes * (2 if s.trainable else 1) + s.state_bytes for s in self.specs)

    def refuse_hopeless(self, base_bytes: int) -> None:
        """Refuse a budget that cannot hold even the pages, whatever the batch."""
        if self.device is not None and self.device.memory_bytes is not None:
            demand = self._demand_of_device(self.device, 0, None, 1)
            divide(demand, self.device.memory_bytes, least(demand))
        if self.budget_bytes is None:
            return
        if self.store.path is None:
            needed = base_bytes + self.state_bytes
            if needed > self.budget_bytes:
                raise BudgetError(
                    f"memory={format_bytes(self.budget_bytes)} is too small to train in memory alone: parameters, "
                    f"gradients and optimizer state take {format_bytes(needed)} with the process itself. "
                    "Give store='a/folder' to stream them from disk"
                )
            return
        plan = least(self._demand(base_bytes, None, 1))
        if plan.peak_bytes > self.budget_bytes:
            raise BudgetError(
                f"memory={format_bytes(self.budget_bytes)} is too small: without any activation the smallest that "
                f"works is {-(-plan.peak_bytes // (1 << 20))}MiB ({describe(plan)})"
            )

    def is_new(self, parts: Sequence[Any]) -> bool:
        """Whether batches of this shape have not been planned for."""
        return self._signature(parts) != self._seen

    @property
    def keep(self) -> frozenset[int]:
        """Layers whose activations are kept."""
        plan = self.plan if self.device is None else self.device_plan
        return plan.keep if plan is not None else frozenset(range(len(self.engine.cut.layers)))

    def make_plan(self, parts: Sequence[Any], base_bytes: int) -> MemoryPlan | None:
        """Plan for batches like this one; what it holds for a device is in `device_plan`.

        Raises:
            BudgetError: the budget is too small for it; names the smallest that works.
        """
        self._seen = self._signature(parts)
        if self.device is not None:
            self._plan_device(self.device, parts)
        if self.budget_bytes is None:
            return None
        if self.device is not None:
            self.demand = self._demand(base_bytes, None, len(parts))
            start = in_memory(self.demand) if self.store.path is None else least(self.demand)
            self.plan = divide(self.demand, self.budget_bytes, start)
            return self.plan
        measured = self._profile(parts)
        set_aside = 0 if measured is not None else self.budget_bytes // 2
        demand = self._demand(base_bytes + set_aside, measured, len(parts))
        start = in_memory if self.store.path is None else least
        if measured is None:
            self.demand, self.plan = demand, divide(demand, self.budget_bytes, start(demand))
        else:
            self.demand, self.plan = divide_rounds(demand, self.budget_bytes, start)
        return self.plan

    def _plan_device(self, device: Device, parts: Sequence[Any]) -> None:
        """Divide the memory of a device: activations, and pages on their way."""
        if device.memory_bytes is None:
            return
        measured = self._profile(parts)
        set_aside = 0 if measured is not None else device.memory_bytes // 2
        self.device_demand = self._demand_of_device(device, set_aside, measured, len(parts))
        self.device_plan = divide(self.device_demand, device.memory_bytes, least(self.device_demand))

    def forecast(self, parts: Sequence[Any], base_bytes: int) -> Forecast:
        """What a step on batches like this one will take.

        Raises:
            BudgetError: as `make_plan`.
        """
        if self.is_new(parts) or self.plan is None:
            self.make_plan(parts, base_bytes)
        demand, plan = self.demand, self.plan
        if demand is None or plan is None:
            demand, plan = self._unlimited(parts, base_bytes)
        there, on_device = self.device_demand or demand, self.device_plan or plan
        slots = sum(spec.slot_bytes * (2 if spec.trainable else 1) for spec in self.specs)
        rates = self._rates or probe(self.store.path, torch.float32)
        trained = sum(spec.param_bytes // spec.dtype.itemsize for spec in self.specs if spec.trainable)
        return Forecast(
            num_parameters=sum(param.numel for spec in self.specs for param in spec.params),
            state_bytes=self.state_bytes,
            budget_bytes=self.budget_bytes,
            peak_bytes=plan.peak_bytes,
            disk_bytes=0 if self.store.path is None else slots + self.gradient_bytes(plan),
            read_bytes=plan.read_bytes,
            write_bytes=plan.write_bytes,
            kept_layers=len(on_device.keep),
            num_layers=len(self.engine.cut.layers),
            compute_s=compute_seconds(there, on_device),
            io_s=max(io_seconds(demand, plan), io_seconds(there, on_device)),
            update_s=trained / rates.update_params_s,
            device_budget_bytes=None if self.device is None else self.device.memory_bytes,
            device_peak_bytes=0 if self.device_plan is None else on_device.peak_bytes,
            micro_batches=len(parts),
            group=plan.group,
            link_bytes=0 if self.device_plan is None else on_device.read_bytes + on_device.write_bytes,
        )

    def gradient_bytes(self, plan: MemoryPlan) -> int:
        """Disk for gradients that do not fit in memory."""
        total = sum(spec.param_bytes for spec in self.specs if spec.trainable)
        return total if plan.grad_bytes < total else 0

    def _unlimited(self, parts: Sequence[Any], base_bytes: int) -> tuple[Demand, MemoryPlan]:
        """The division without a budget: everything stays, nothing is recomputed."""
        demand = self._demand(base_bytes, None if self.device else self._profile(parts), len(parts))
        plan = in_memory(demand, frozenset(range(len(self.engine.cut.layers))))
        if self.store.path is not None:
            state = sum(spec.state_bytes for spec in self.specs if spec.trainable)
            written = state + sum(spec.param_bytes for spec in self.specs if spec.trainable)
            plan = replace(plan, ring_bytes=demand.ring_bytes, resident_bytes=0, read_bytes=state, write_bytes=written)
        return demand, plan

    def _profile(self, parts: Sequence[Any]) -> Profile | None:
        task = self.engine.model, parts[0], self._run, self.engine.number, self.engine.record
        if self.device is None:
            measured = profile(*task)
        else:
            with self.engine.recording():
                measured = profile_here(*task)
        if isinstance(measured, str):
            self.note = f"activations could not be predicted ({measured}): half of the budget is left for them"
            return None
        return measured

    def growth_bytes(self) -> dict[str, int]:
        """How much memory each layer's work takes beside what was alive before, by name."""
        if self.demand is None or self.demand.profile is None:
            return {}
        measured = self.demand.profile
        growth: dict[str, int] = {}
        for segment in measured.segments:
            if segment.visit >= 0:
                name = self.engine.cut.layers[measured.layers[segment.visit]].name
                growth[name] = max(growth.get(name, 0), segment.peak_bytes - segment.live_bytes)
        return growth

    def _demand(self, base_bytes: int, measured: Profile | None, micro_batches: int) -> Demand:
        rates = Rates(1e11, 1e10, 1e9, 1e9, 1e9)
        if measured is not None:
            if self._rates is None:
                dtype = torch.bfloat16 if self.engine.precision == "bf16" else torch.float32
                self._rates = probe(self.store.path, dtype)
            rates = self._rates
        pages = [layer.pages for layer in self.engine.cut.layers]
        if measured is not None:
            pages = [self.engine.cut.layers[number].pages for number in measured.layers]
        chunk_bytes = CHUNK_ELEMENTS * max((s.dtype.itemsize for s in self.specs), default=4)
        return Demand(
            base_bytes,
            RING_CHUNKS * max(chunk_bytes, CHUNK_ELEMENTS * 4),
            self.specs,
            self.engine.cut.shared,
            tuple(pages + pages[::-1]),
            measured,
            micro_batches,
            rates.flops_s,
            rates.moved_bytes_s,
            rates.read_bytes_s,
            rates.write_bytes_s,
        )

    def _demand_of_device(
        self, device: Device, base_bytes: int, measured: Profile | None, micro_batches: int
    ) -> Demand:
        """What a step asks of a device: no optimizer state, no disk."""
        demand = self._demand(base_bytes, None, micro_batches)
        pages = [layer.pages for layer in self.engine.cut.layers]
        rates = Rates(1e13, 1e11, 1e10, 1e10, 1e9)
        if measured is not None:
            pages = [self.engine.cut.layers[number].pages for number in measured.layers]
            rates = probe_device(device.link, torch.bfloat16 if self.engine.precision == "bf16" else torch.float32)
        tensors = [*self.engine.model.buffers(), *(tensor for _, tensor in self.engine.cut.left)]
        return replace(
            demand,
            base_bytes=base_bytes + sum(tensor.nbytes for tensor in tensors),
            ring_bytes=0,
            specs=tuple(replace(spec, regions=spec.regions[:1]) for spec in self.specs),
            accesses=tuple(pages + pages[::-1]),
            profile=measured,
            flops_s=rates.flops_s,
            moved_bytes_s=rates.moved_bytes_s,
            read_bytes_s=rates.read_bytes_s,
            write_bytes_s=rates.write_bytes_s,
            on_device=True,
        )

    @staticmethod
    def _signature(parts: Sequence[Any]) -> object:
        leaves, structure = tree_flatten(parts[0])
        shapes = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else type(x) for x in leaves)
        return len(parts), str(structure), shapes


def base_bytes(slab_bytes: int) -> int:
    """The process without its pages, now."""
    heap.give_back()
    return machine.current_rss_bytes() - slab_bytes
