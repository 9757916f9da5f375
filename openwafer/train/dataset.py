"""The data of a run or of one of its phases: opened, checked against the model, and handed out as batches by step."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from openwafer.base.errors import ConfigError
from openwafer.data import Hdf5Samples, Loader, SampleLoader, TokenShards
from openwafer.train.build import decoder_config
from openwafer.train.config import RunConfig


class Batches(Protocol):
    """Batches by number; each a function of the number alone."""

    def batch(self, step: int, rows: slice = ...) -> dict[str, Tensor]: ...


class Dataset(Protocol):
    """What a phase trains and validates on."""

    @property
    def fingerprint(self) -> str:
        """Another one for other data."""
        ...

    @property
    def tokenizer_file(self) -> Path:
        """Where its tokenizer is, if it has one."""
        ...

    def train(self, first_step: int = 0, first_sample: int = 0) -> Batches:
        """Batches from step `first_step` on, which begins with sample `first_sample`."""
        ...

    def validation(self) -> Batches:
        """Batches from 0 on."""
        ...

    def num_validation(self) -> int:
        """How many of them a validation takes."""
        ...


def open_dataset(config: RunConfig) -> Dataset:
    """The data that a configuration names.

    Raises:
        DataError: it is missing or damaged.
        ConfigError: it does not fit the model.
    """
    return _Shards(config) if config.data.form == "shards" else _Hdf5(config)


class _Shards:
    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._shards = TokenShards(config.data.folders[0])
        vocab_size = decoder_config(config.model).vocab_size
        if self._shards.vocab_size > vocab_size:
            raise ConfigError(
                f"the tokens of {self._shards.path} have a vocabulary of {self._shards.vocab_size}, the model has "
                f"{vocab_size} rows: set model.vocab_size={self._shards.vocab_size} or more, or prepare the data with "
                "a smaller vocabulary."
            )
        self.fingerprint = self._shards.fingerprint
        self.tokenizer_file = self._shards.path / "tokenizer.json"

    def train(self, first_step: int = 0, first_sample: int = 0) -> Loader:
        config = self._config
        return Loader(
            self._shards,
            config.sequence_length,
            config.sequences,
            config.train.seed,
            validation_share=config.data.validation,
            first_step=first_step,
            first_sample=first_sample,
        )

    def validation(self) -> Loader:
        config = self._config
        return Loader(
            self._shards,
            config.sequence_length,
            config.sequences,
            config.train.seed,
            split="validation",
            validation_share=config.data.validation,
        )

    def num_validation(self) -> int:
        return self._config.train.validation_batches or max(1, int(self.validation().steps_per_epoch))


class _Hdf5:
    def __init__(self, config: RunConfig) -> None:
        self._config = config
        data = config.data
        self._samples = Hdf5Samples(data.folders, data.sequence_length, data.subset)
        self._held_out = None
        if data.validation_folders:
            self._held_out = Hdf5Samples(data.validation_folders, data.sequence_length)
        self._decoder = decoder_config(config.model)
        self._check_length()
        self.fingerprint = self._samples.fingerprint
        self.tokenizer_file = data.folders[0] / "tokenizer.json"

    def train(self, first_step: int = 0, first_sample: int = 0) -> SampleLoader:
        return self._loader(
            self._samples, self._config.sequences, self._config.data.shuffle_seed, first_step, first_sample
        )

    def validation(self) -> SampleLoader:
        assert self._held_out is not None
        return self._loader(self._held_out, self._validation_sequences)

    def num_validation(self) -> int:
        assert self._held_out is not None
        whole = max(1, len(self._held_out) // self._validation_sequences)
        return min(whole, self._config.train.validation_batches or whole)

    @property
    def _validation_sequences(self) -> int:
        assert self._held_out is not None
        return min(self._config.data.validation_sequences or self._config.sequences, len(self._held_out))

    def _loader(
        self,
        samples: Hdf5Samples,
        batch_size: int,
        seed: int | None = None,
        first_step: int = 0,
        first_sample: int = 0,
    ) -> SampleLoader:
        sink = self._config.data.sink_tokens
        return SampleLoader(
            samples,
            batch_size,
            seed,
            self._decoder.vocab_size,
            packed=self._config.data.packed,
            sink=None if sink is None else (sink.token_id, sink.count),
            first_step=first_step,
            first_sample=first_sample,
        )

    def _check_length(self) -> None:
        limit, length = self._decoder.position_limit, self._loader(self._samples, 1).sequence_length
        if limit is not None and length > limit:
            raise ConfigError(
                f"{self._config.data.folders[0]} has samples of {length} tokens, the model has {limit} positions: set "
                f"max_position_embeddings={length} or more, or take data of shorter samples."
            )
