"""Cutting and weighing batches."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.pytorch import batch as batches


def test_split_keeps_what_is_not_the_batch() -> None:
    x, y, scale, mask = torch.arange(12).view(6, 2), torch.arange(6), torch.tensor(2.0), torch.ones(3, 3)
    parts = batches.split({"x": x, "y": [y, "name"], "scale": scale, "mask": mask, "flag": True}, 3)
    assert [part["x"].shape for part in parts] == [(2, 2)] * 3
    assert torch.equal(torch.cat([part["y"][0] for part in parts]), y)
    assert all(part["scale"] is scale and part["mask"] is mask and part["flag"] for part in parts)


def test_split_unevenly() -> None:
    assert [part.shape[0] for part in batches.split(torch.zeros(7, 2), 3)] == [3, 2, 2]
    whole = torch.zeros(2)
    assert batches.split(whole, 1)[0] is whole


@pytest.mark.parametrize(
    ("batch", "count", "match"),
    [(torch.zeros(4), 0, "at least 1"), ("text", 2, "no tensor"), (torch.zeros(3, 2), 4, "at most 3")],
)
def test_split_refuses(batch: object, count: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        batches.split(batch, count)


def test_num_targets() -> None:
    assert batches.num_targets({"labels": torch.tensor([[1, -100], [2, 3]])}) == 3
    assert batches.num_targets({"x": torch.zeros(5, 2)}) == 5
    assert batches.num_targets((torch.zeros(4, 2), torch.zeros(4))) == 4
    assert batches.num_targets("nothing") == 1


def test_call() -> None:
    def model(*args: object, **kwargs: object) -> tuple:
        return args, kwargs

    assert batches.call(model, {"a": 1}) == ((), {"a": 1})
    assert batches.call(model, (1, 2)) == ((1, 2), {})
    assert batches.call(model, 1) == ((1,), {})


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor(2.0),
        torch.tensor([2.0]),
        SimpleNamespace(loss=torch.tensor(2.0)),
        OrderedDict(loss=torch.tensor(2.0), logits=torch.zeros(3)),
        (torch.tensor(2.0), torch.zeros(3)),
    ],
)
def test_find_loss(output: object) -> None:
    loss = batches.find_loss(output)
    assert loss.shape == ()
    assert loss == 2


@pytest.mark.parametrize("output", [torch.zeros(3), "text", {}, ()])
def test_find_loss_refuses(output: object) -> None:
    with pytest.raises(ConfigError, match="without a scalar loss"):
        batches.find_loss(output)
