"""Batches of prepared samples, each a function of the seed and the step alone, as in `Loader`.

In file order, or shuffled by our own `Permutation`: ModelZoo's shuffled order is that of its library's generator and is
not reproduced. Batches run across epochs, so no sample is dropped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwafer.base.errors import ConfigError, DataError
from openwafer.data.hdf5 import Hdf5Samples
from openwafer.data.permutation import Permutation

IGNORED = -100
"""Label of a position that has no target. Source: torch.nn.CrossEntropyLoss."""


class SampleLoader:
    """Samples in order or shuffled, epoch after epoch without end.

    Args:
        samples: the data.
        batch_size: B, in samples.
        seed: of the shuffle; None keeps the order of the files.
        vocab_size: ids must be below it.
        packed: whether documents of a sample are kept apart; None where the data tells them apart.
        sink: (token id, count): every sample begins with that token, so many times, as no target.
        first_step, first_sample: the batch of `first_step` begins with `first_sample`.

    Raises:
        ConfigError: an option out of range, or packed data is asked for and there is none.
    """

    def __init__(
        self,
        samples: Hdf5Samples,
        batch_size: int,
        seed: int | None = None,
        vocab_size: int | None = None,
        packed: bool | None = None,
        sink: tuple[int, int] | None = None,
        first_step: int = 0,
        first_sample: int = 0,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if packed and not samples.is_packed:
            raise ConfigError(f"{samples.files[0].parent} has no packed samples: its data has 3 rows a sample, not 5")
        self.samples = samples
        self.packed = samples.is_packed if packed is None else packed
        self.sink = sink
        self.batch_size = batch_size
        self.sequence_length = samples.sequence_length + (sink[1] if sink else 0)
        self.seed = seed
        self.vocab_size = vocab_size
        self._first_step, self._first_sample = first_step, first_sample

    @property
    def tokens_per_batch(self) -> int:
        """Positions in a batch, B * T."""
        return self.batch_size * self.sequence_length

    def numbers(self, step: int) -> list[int]:
        """Numbers of the samples in the batch of `step`; row order."""
        if step < self._first_step:
            raise ConfigError(f"step is {step}; this loader begins at {self._first_step}")
        first = self._first_sample + (step - self._first_step) * self.batch_size
        count = len(self.samples)
        epochs: dict[int, Permutation] = {}
        numbers = []
        for place in range(first, first + self.batch_size):
            epoch, number = divmod(place, count)
            if self.seed is not None:
                epochs.setdefault(epoch, Permutation(count, self.seed, epoch))
                number = epochs[epoch][number]
            numbers.append(number)
        return numbers

    def batch(self, step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        """The batch of `step`, or some of its rows.

        Returns:
            input_ids and labels, int64 [B, T]; a label outside the loss mask is -100. Packed samples have documents
            too, the number of each position's document.

        Raises:
            DataError: the data cannot be read, or holds an id outside the vocabulary.
        """
        picked = self.numbers(step)[rows]
        data = torch.from_numpy(np.stack([self.samples.read(number) for number in picked]))
        ids, mask, labels = data[:, 0], data[:, 1], data[:, 2]
        self._check(ids, labels, picked)
        batch = {"input_ids": ids.contiguous(), "labels": labels.masked_fill(mask == 0, IGNORED)}
        if self.packed:
            batch["documents"] = document_ids(data[:, 3])
        return batch if self.sink is None else {key: self._with_sink(key, value) for key, value in batch.items()}

    def _with_sink(self, key: str, rows: Tensor) -> Tensor:
        """`rows` [B, T] behind the sink tokens, which belong to the first document and are no targets."""
        assert self.sink is not None
        token, count = self.sink
        fill = {"input_ids": token, "labels": IGNORED, "documents": 0}[key]
        return torch.cat([rows.new_full((len(rows), count), fill), rows], dim=1)

    def _check(self, ids: Tensor, labels: Tensor, picked: list[int]) -> None:
        largest, smallest = int(torch.maximum(ids, labels).max()), int(torch.minimum(ids, labels).min())
        if smallest < 0 or (self.vocab_size is not None and largest >= self.vocab_size):
            wrong = smallest if smallest < 0 else largest
            raise DataError(
                f"{self.samples.files[0].parent}: a sample of {picked[:4]}... holds token {wrong}; the model's "
                f"vocabulary has {self.vocab_size}"
            )


def document_ids(attention_span: Tensor) -> Tensor:
    """Number of the document each position belongs to, [B, T], from how many positions after it may see it."""
    ends = attention_span == 0
    return torch.cumsum(ends, dim=1) - ends.to(torch.int64)
