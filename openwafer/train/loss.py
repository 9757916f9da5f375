"""ModelZoo's `batch_size` scaling of the loss: the sum over tokens, times a weight, over the sequences of the step.

The engine minimises the mean over a step's valid tokens; the factor between them is known once the step's batch is.
Source: ModelZoo 2.10, documentation of loss_scaling and loss_weight.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openwafer.pytorch.batch import find_loss, num_targets
from openwafer.train.config import LossConfig


class StepLoss:
    """The loss of micro-batches; `begin` is told the step's whole batch first."""

    def __init__(self) -> None:
        self._factor = 1.0

    def begin(self, config: LossConfig, batch: Mapping[str, Tensor]) -> None:
        """Learn how many targets and sequences the step has."""
        self._factor = 1.0
        if config.scaling == "batch_size":
            self._factor = num_targets(batch) * config.weight / len(batch["input_ids"])

    def __call__(self, output: Any, batch: Any) -> Tensor:
        loss = find_loss(output)
        return loss if self._factor == 1.0 else loss * self._factor
