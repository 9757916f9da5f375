"""The loader: every window once an epoch, in an order fixed by seed and step alone."""

import pytest
import torch

from openwafer.base.errors import ConfigError, DataError
from openwafer.data import Loader, TokenShards


def flat(loader, steps):
    return [window for step in steps for window in loader.windows(step)]


def test_labels_are_the_next_tokens(shards):
    loader = Loader(shards, 16, 4, seed=0)
    batch = loader.batch(3)
    for row, window in enumerate(loader.windows(3)):
        tokens = torch.from_numpy(shards.read(window * 16, 17))
        assert torch.equal(batch["input_ids"][row], tokens[:-1])
        assert torch.equal(batch["labels"][row], tokens[1:])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape == (4, 16)
    assert batch["labels"].is_contiguous()


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_each_epoch_holds_every_window_once_and_in_another_order(shards, batch_size):
    loader = Loader(shards, 16, batch_size, seed=5)
    n = loader.num_windows
    assert n == (len(shards) - 1) // 16
    order = flat(loader, range(-(-3 * n // batch_size)))
    epochs = [order[start : start + n] for start in (0, n, 2 * n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] != list(range(n))


def test_a_step_needs_no_history(shards):
    loader = Loader(shards, 16, 4, seed=1)
    wanted = [loader.batch(step)["input_ids"] for step in range(60)]
    fresh = Loader(TokenShards(shards.path), 16, 4, seed=1)
    assert all(torch.equal(fresh.batch(step)["input_ids"], wanted[step]) for step in reversed(range(60)))


def test_far_steps_cost_nothing(shards):
    assert Loader(shards, 16, 4, seed=1).batch(10**15)["input_ids"].shape == (4, 16)


def test_seed_decides(shards):
    first, second = (flat(Loader(shards, 16, 4, seed=seed), range(10)) for seed in (0, 1))
    assert first != second


def test_batch_size_does_not_change_the_order(shards):
    assert flat(Loader(shards, 16, 2, seed=0), range(12)) == flat(Loader(shards, 16, 8, seed=0), range(3))


def test_rows_of_a_batch(shards):
    loader = Loader(shards, 16, 6, seed=0)
    whole = loader.batch(2)["labels"]
    parts = [loader.batch(2, slice(rank, None, 3))["labels"] for rank in range(3)]
    assert torch.equal(torch.stack(parts, dim=1).reshape(6, 16), whole)


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5])
def test_splits_are_disjoint_complete_and_independent_of_the_seed(shards, share):
    train, validation = (Loader(shards, 16, 1, 0, split, share) for split in ("train", "validation"))
    total = (len(shards) - 1) // 16
    assert train.num_windows + validation.num_windows == total
    assert validation.num_windows == max(1, round(share * total))
    held_out = set(flat(validation, range(validation.num_windows)))
    assert held_out.isdisjoint(flat(train, range(train.num_windows)))
    other = Loader(shards, 16, 1, 99, "validation", share)
    assert set(flat(other, range(other.num_windows))) == held_out


def test_counts(shards):
    loader = Loader(shards, 16, 4, seed=0)
    assert loader.tokens_per_batch == 64
    assert loader.steps_per_epoch == loader.num_windows / 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sequence_length": 0}, ConfigError, "sequence_length is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"validation_share": 1.0}, ConfigError, "validation_share is 1.0"),
        ({"split": "test"}, ConfigError, "split is 'test'; it must be 'train' or 'validation'"),
        ({"sequence_length": 10**6}, DataError, "prepare more data, or shorten sequence_length"),
        ({"split": "validation"}, DataError, "the validation split with validation_share 0.0 gets none"),
    ],
)
def test_bad_arguments(shards, arguments, error, message):
    with pytest.raises(error, match=message):
        Loader(shards, **({"sequence_length": 16, "batch_size": 1, "seed": 0} | arguments))


def test_negative_step(shards):
    with pytest.raises(ConfigError, match="step is -1"):
        Loader(shards, 16, 1, 0).batch(-1)
