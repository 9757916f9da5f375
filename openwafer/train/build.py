"""From the configuration's sections to the objects they describe: decoder shape, optimizer, learning rate."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from openwafer.models import CEREBRAS_GPT, DecoderConfig
from openwafer.streaming.lion import Lion
from openwafer.train.config import ModelConfig, OptimizerConfig, ScheduleConfig

_FAMILY = "cerebras-gpt-"
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
    "lion": Lion,
}


def decoder_config(model: ModelConfig) -> DecoderConfig:
    """The shape that the model section describes."""
    fields = {name: value for name, value in model.model_dump().items() if name != "preset" and value is not None}
    if model.preset is None:
        return DecoderConfig(**fields)
    base = CEREBRAS_GPT[model.preset.removeprefix(_FAMILY)]
    if "hidden_size" in fields and "ffn_size" not in fields:
        fields["ffn_size"] = None  # four times the new size, not the preset's
    if "num_layers" in fields:
        fields["output_init_std"] = None  # follows the depth
    return dataclasses.replace(base, **fields)


def make_optimizer(model: nn.Module, optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over ``model``; biases and norms (one dimension) decay only if asked."""
    options = optimizer.options()
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [{"params": params}]
    if options["weight_decay"] and not optimizer.decay_1d:
        matrices = [param for param in params if param.dim() >= 2]
        vectors = [param for param in params if param.dim() < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return _OPTIMIZERS[optimizer.name]([group for group in groups if group["params"]], **options)


def make_scheduler(optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, total_steps: int) -> LambdaLR:
    """The learning rate as a function of the number of steps done, and of nothing else."""
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
