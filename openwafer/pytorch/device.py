"""Where a job computes if not on the CPU: what `compile` was told about it, and what goes there beside the pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from openwafer.base.errors import ConfigError
from openwafer.base.units import parse_bytes
from openwafer.streaming.link import Link, open_link
from openwafer.streaming.probe import probe_update, probe_update_over
from openwafer.streaming.update import OptimizerSpec

UPDATES = ("auto", "host", "device")
FREE_SHARE = 0.9


@dataclass(frozen=True)
class Device:
    """A device and how much of it a job may use.

    Attributes:
        memory_bytes: budget on the device; None: no limit.
        updates: where the optimizer computes, one of `UPDATES`.
    """

    link: Link
    memory_bytes: int | None
    updates: str

    def move(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put tensors on the device; they stay the objects they are."""
        for tensor in tensors:
            tensor.data = tensor.data.to(self.link.device)

    def move_back(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put tensors back into host memory."""
        for tensor in tensors:
            tensor.data = tensor.data.cpu()

    def put(self, batch: Any) -> Any:
        """A batch with its tensors on the device."""
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(self.link.device), batch)

    def computes_updates(self, spec: OptimizerSpec | None, before: str | None) -> bool:
        """Whether the optimizer computes on the device, copies both ways included.

        Host and device round differently, so a run that goes on stays where it was (`before`) if that is left open.

        Raises:
            ConfigError: asked for with an optimizer that needs each parameter whole.
        """
        elementwise = spec is None or spec.elementwise
        if self.updates == "device" and not elementwise:
            assert spec is not None
            raise ConfigError(
                f"optimizer_device='device' is for optimizers that work element by element, not {spec.name}: "
                "use 'auto' or 'host'"
            )
        if self.updates != "auto" or not elementwise:
            return self.updates == "device"
        if before is not None:
            return before == "device"
        return probe_update_over(self.link) > probe_update()


def open_device(device: str | torch.device | Link | None, memory: str | int | None, updates: str) -> Device | None:
    """What the options of `compile` mean; None for the CPU.

    Raises:
        ConfigError: an option is wrong, or there is no such device here.
    """
    if updates not in UPDATES:
        raise ConfigError(f"optimizer_device must be one of {', '.join(UPDATES)}, got {updates!r}")
    link = open_link(device)
    if link is None:
        if memory is not None or updates == "device":
            option = "device_memory" if memory is not None else "optimizer_device='device'"
            raise ConfigError(f"{option} needs a device to compute on: give device='auto', or leave it out on the CPU")
        return None
    free_bytes = link.free_bytes()
    if memory is not None:
        return Device(link, parse_bytes(memory), updates)
    return Device(link, None if free_bytes is None else int(free_bytes * FREE_SHARE), updates)
