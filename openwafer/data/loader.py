"""Batches of packed windows in shuffled order, each a function of the seed and the step alone.

So there is no state to save: a run that knows its step goes on to the sample where it stopped. Documents are packed
end to end; a window may hold the end of one and the start of another.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openwafer.base.errors import ConfigError, DataError
from openwafer.data.permutation import Permutation
from openwafer.data.shards import TokenShards

# The split must not move with the seed, or a model would be validated on what another seed trained on.
_SPLIT_KEY = 0x5B117


class Loader:
    """Windows of the tokens in shuffled order, epoch after epoch without end.

    Window i has the inputs [i*T, i*T + T) and the labels [i*T + 1, i*T + T + 1): every token but the first is a label
    once an epoch (up to T - 1 at the end of the data are left over). A share of the windows, spread over the data and
    depending on T alone, can be set aside for validation; no label is in both splits.

    Args:
        shards: the tokens.
        sequence_length: T, in tokens.
        batch_size: B, in windows.
        seed: another seed, another order.
        split: "train" or "validation".
        validation_share: of the windows, in [0, 1); above 0 it takes at least one.
        first_step, first_sample: the batch of `first_step` begins with sample `first_sample` of the order.

    Raises:
        ConfigError: an option out of range.
        DataError: the split has less than one window.
    """

    def __init__(
        self,
        shards: TokenShards,
        sequence_length: int,
        batch_size: int,
        seed: int,
        split: Literal["train", "validation"] = "train",
        validation_share: float = 0.0,
        first_step: int = 0,
        first_sample: int = 0,
    ):
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not 0 <= validation_share < 1:
            raise ConfigError(f"validation_share is {validation_share}; it must be at least 0 and below 1")
        if split not in ("train", "validation"):
            raise ConfigError(f"split is {split!r}; it must be 'train' or 'validation'")
        self.shards = shards
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        windows = (len(shards) - 1) // sequence_length
        held_out = max(1, round(windows * validation_share)) if validation_share else 0
        self._first = held_out if split == "train" else 0
        self.num_windows: int = max(0, windows - held_out) if split == "train" else min(held_out, windows)
        if self.num_windows < 1:
            raise DataError(
                f"{shards.path} has {len(shards)} tokens, {windows} windows of {sequence_length}; the {split} split "
                f"with validation_share {validation_share} gets none: prepare more data, or shorten sequence_length"
            )
        self._split = Permutation(windows, _SPLIT_KEY)
        self._first_step, self._first_sample = first_step, first_sample

    @property
    def tokens_per_batch(self) -> int:
        """Labels in a batch, B * T."""
        return self.batch_size * self.sequence_length

    @property
    def steps_per_epoch(self) -> float:
        """Batches that hold every window once; need not be whole, batches run across epochs."""
        return self.num_windows / self.batch_size

    def windows(self, step: int) -> list[int]:
        """Numbers of the windows in the batch of `step`, counted from 0; row order."""
        if step < self._first_step:
            raise ConfigError(f"step is {step}; it must not be below {self._first_step}")
        first = self._first_sample + (step - self._first_step) * self.batch_size
        result = []
        epoch, order = None, None
        for sample in range(first, first + self.batch_size):
            if order is None or epoch != sample // self.num_windows:
                epoch = sample // self.num_windows
                order = Permutation(self.num_windows, self.seed, epoch)
            result.append(self._split[self._first + order[sample % self.num_windows]])
        return result

    def batch(self, step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        """The batch of `step`, or some of its rows (so that several processes can share one).

        Returns:
            input_ids and labels, int64 [B, T]; labels[b, t] is the token after input_ids[b, t].

        Raises:
            DataError: the shards cannot be read.
        """
        time = self.sequence_length
        picked = self.windows(step)[rows]
        tokens = np.empty((len(picked), time + 1), dtype=np.int64)
        for row, window in enumerate(picked):
            tokens[row] = self.shards.read(window * time, time + 1)
        both = torch.from_numpy(tokens)
        return {"input_ids": both[:, :-1].contiguous(), "labels": both[:, 1:].contiguous()}
