"""Sets the options of an optimizer's groups from closed-form schedules, with the interface of torch's schedulers."""

from collections.abc import Sequence
from typing import Any

import torch

from openwafer.base.errors import ConfigError
from openwafer.train.schedules import Driven


class GroupScheduler:
    """Drives learning rates and weight decays; its only state is the number of steps done.

    A learning rate is the schedule's value times the group's `lr_scale`. A group that does not decay goes on not to.

    Raises:
        ConfigError: two schedules for one option of a group, or one for no group at all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedules: Sequence[Driven]):
        self._optimizer = optimizer
        self._driven = [
            (driven, [group for group in optimizer.param_groups if _drives(driven, group)]) for driven in schedules
        ]
        self.last_epoch = 0
        self._check()
        self._set()

    def step(self) -> None:
        """One optimizer step more is done."""
        self.last_epoch += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_epoch = int(state["last_epoch"])
        self._set()

    def _set(self) -> None:
        for driven, groups in self._driven:
            value = driven.schedule.at(self.last_epoch)
            for group in groups:
                group[driven.option] = value * group.get("lr_scale", 1.0) if driven.option == "lr" else value

    def _check(self) -> None:
        seen: set[tuple[str, int]] = set()
        for driven, groups in self._driven:
            if not groups:
                tags = driven.schedule.param_group_tags
                raise ConfigError(f"a schedule of {driven.option} with param_group_tags {tags} drives no parameter.")
            for group in groups:
                key = (driven.option, id(group))
                if key in seen:
                    raise ConfigError(
                        f"two schedules drive the {driven.option} of one parameter group; tell them apart with "
                        "param_group_tags, or put them into one SequentialLR."
                    )
                seen.add(key)


def _drives(driven: Driven, group: dict[str, Any]) -> bool:
    if driven.option == "weight_decay" and not group.get("weight_decay"):
        return False
    return driven.schedule.drives(frozenset(group.get("tags", ())))
