"""From the configuration's sections to the objects they describe: decoder shape, optimizer, learning rate."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from openwafer.models import FAMILIES, DecoderConfig
from openwafer.models.interchange.modelzoo_config import decoder_of
from openwafer.streaming.lion import Lion
from openwafer.train.config import ModelConfig, OptimizerConfig, ScheduleConfig
from openwafer.train.group_scheduler import GroupScheduler
from openwafer.train.param_groups import param_groups
from openwafer.train.schedules import Driven

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
    "lion": Lion,
}


def decoder_config(model: ModelConfig) -> DecoderConfig:
    """The shape that the model section describes."""
    if model.modelzoo is not None:
        return decoder_of(model.modelzoo)
    given = model.model_dump(exclude={"preset", "modelzoo"})
    fields = {name: value for name, value in given.items() if value is not None}
    if model.preset is None:
        return DecoderConfig(**fields)
    base = FAMILIES[model.preset]
    if "hidden_size" in fields:  # the MLP, and key heads beside query heads, keep the preset's proportions
        fields.setdefault("ffn_size", round(base.ffn_size * fields["hidden_size"] / base.hidden_size))
    if "num_heads" in fields:
        groups = base.num_heads // base.num_kv_heads
        fields.setdefault("num_kv_heads", max(1, fields["num_heads"] // groups))
    if "num_layers" in fields:
        fields["output_init_std"] = None  # follows the depth
    return base.resized(**fields)


def make_optimizer(
    model: nn.Module, optimizer: OptimizerConfig, decoder: DecoderConfig | None = None
) -> torch.optim.Optimizer:
    """The optimizer over ``model``; biases and norms (one dimension) decay only if asked; ``decoder`` brings muP."""
    options = optimizer.options()
    groups = param_groups(model, optimizer, options["weight_decay"], decoder)
    for group in groups:
        group["lr"] = options["lr"] * group["lr_scale"]
    return _OPTIMIZERS[optimizer.name](groups, **options)


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: ScheduleConfig,
    total_steps: int,
    schedulers: Sequence[Driven] | None = None,
) -> LambdaLR | GroupScheduler:
    """The learning rate as a function of the number of steps done, and of nothing else; ``schedulers`` go first."""
    if schedulers is not None:
        return GroupScheduler(optimizer, schedulers)
    return LambdaLR(optimizer, learning_rate_factor(schedule, total_steps))


def learning_rate_factor(schedule: ScheduleConfig, total_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by before the step that follows ``steps_done`` steps."""

    def factor(steps_done: int) -> float:
        if steps_done < schedule.warmup_steps:
            return (steps_done + 1) / schedule.warmup_steps
        if schedule.decay == "constant":
            return 1.0
        progress = (steps_done - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
        progress = min(1.0, progress)
        if schedule.decay == "linear":
            remaining = 1.0 - progress
        else:
            remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
        return schedule.end_ratio + (1.0 - schedule.end_ratio) * remaining

    return factor
