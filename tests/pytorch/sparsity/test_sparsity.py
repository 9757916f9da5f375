"""Masks against numpy, schedules against their formulas, training against masks applied by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from openwafer.base.errors import ConfigError
from openwafer.pytorch.sparsity import SparseModel, is_sparse_by_default, make_algorithm
from openwafer.pytorch.sparsity.hyper_schedules import parse_hyper_schedule, parse_update_schedule
from openwafer.pytorch.sparsity.masks import Groups, checkerboard, drop_lowest, grow_highest, keep_highest

torch.manual_seed(0)
WEIGHT = torch.randn(8, 12)


def test_keep_highest_is_a_sort():
    mask = keep_highest(WEIGHT.abs(), 0.75)
    order = np.argsort(-WEIGHT.abs().numpy().ravel())
    assert set(np.flatnonzero(mask.numpy().ravel())) == set(order[:24])
    assert int(keep_highest(WEIGHT, 0.9).sum()) == 9, "96 * 0.1 rounded down"


@pytest.mark.parametrize(("axis", "dim"), [("out", 1), ("in", 0)])
def test_balanced_groups_keep_equally_many(axis, dim):
    mask = keep_highest(WEIGHT.abs(), 0.5, Groups(axis, 4))
    counts = mask.reshape(4, 2, 12).sum((1, 2)) if axis == "out" else mask.reshape(8, 4, 3).sum((0, 2))
    assert counts.tolist() == [12] * 4
    with pytest.raises(ConfigError, match="no 5 equal groups"):
        Groups(axis, 5).check("w", (8, 12))


def test_drop_and_grow():
    mask = keep_highest(WEIGHT.abs(), 0.5)
    left = drop_lowest(WEIGHT.abs(), mask, 0.25)
    assert int(left.sum()) == 36
    assert not (left & ~mask).any()
    assert WEIGHT.abs()[left].min() >= WEIGHT.abs()[mask & ~left].max()
    score = torch.rand(8, 12)
    grown = grow_highest(score, left, 0.5)
    assert int(grown.sum()) == 48
    assert (grown & left).sum() == 36
    new = grown & ~left
    assert score[new].min() >= score[~grown].max()
    assert torch.equal(grow_highest(score, mask, 0.9), mask), "growing never takes away"


def test_checkerboard_is_even():
    mask = checkerboard((6, 16), 0.75)
    assert mask.sum(1).tolist() == [4] * 6
    assert all(np.diff(np.flatnonzero(row)).tolist() == [4] * 3 for row in mask.numpy())
    assert len({tuple(row.tolist()) for row in mask}) > 1


def test_schedules():
    assert [parse_hyper_schedule([0.1, 0.2]).at(9, updates) for updates in range(3)] == [0.1, 0.2, 0.1]
    assert parse_hyper_schedule({"type": "linear", "init": 0.1, "slope": 0.01}).at(20, 0) == pytest.approx(0.3)
    assert parse_hyper_schedule({"type": "power", "init": 0.3, "beta": 0.5}).at(2, 0) == pytest.approx(0.075)
    exp = parse_hyper_schedule({"type": "Exp", "init": 0.1, "gamma": -0.1, "final": 0.9})
    assert exp.at(10, 0) == pytest.approx(0.9 - 0.8 * math.exp(-1))
    cosine = parse_hyper_schedule({"type": "cosine", "init": 0.3, "half_period": 100})
    assert [cosine.at(step, 0) for step in (0, 50, 100)] == pytest.approx([0.3, 0.15, 0.0])
    every = parse_update_schedule({"freq": 10, "start": 5, "stop": 26})
    assert [step for step in range(60) if every.is_update(step)] == [5, 15, 25]
    assert parse_update_schedule({"steps": [3, 7]}).is_update(7)


def test_filters():
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "norm": nn.LayerNorm(4), "proj": nn.Linear(4, 4)})
    names = [name for name, parameter in model.named_parameters() if is_sparse_by_default(name, parameter)]
    assert names == ["proj.weight"]
    static = make_algorithm({"sparsity": 0.5})
    sparse = SparseModel(model, [("*proj.weight", static), (is_sparse_by_default, static)][:1])
    assert list(sparse.masks) == ["proj.weight"]
    with pytest.raises(ConfigError, match="matches no parameter"):
        SparseModel(model, [("*nothing*", static)])


def trained(tree, steps=12, seed=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 12))
    sparse = SparseModel(model, [(is_sparse_by_default, make_algorithm(tree))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    sparse.attach(optimizer)
    seen = []
    for step in range(steps):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((loss.item(), {name: mask.clone() for name, mask in sparse.masks.items()}))
        for name, mask in sparse.masks.items():
            parameter = model.get_parameter(name)
            for tensor in (parameter, parameter.grad, *optimizer.state[parameter].values()):
                if tensor.shape == mask.shape and tensor is not parameter.grad:
                    assert not tensor[~mask].any()
    return model, sparse, seen


def test_static_is_adamw_with_masked_gradients():
    _, sparse, seen = trained({"algorithm": "static", "sparsity": 0.5})
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 12))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05)
    for step in range(12):
        with torch.no_grad():
            for name, mask in sparse.masks.items():
                plain.get_parameter(name).mul_(mask)
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        loss = (plain(x) - x.roll(1, 1)).square().mean()
        assert loss.item() == seen[step][0]
        optimizer.zero_grad()
        loss.backward()
        for name, mask in sparse.masks.items():
            plain.get_parameter(name).grad.mul_(mask)
        optimizer.step()
    assert sparse.density == 0.5
    assert seen[-1][0] < seen[0][0]


def test_gmp_prunes_by_magnitude_along_its_schedule():
    _, _, seen = trained(
        {"algorithm": "gmp", "sparsity": {"type": "linear", "init": 0.0, "slope": 0.05}, "update": {"freq": 4}}
    )
    kept = [sum(int(mask.sum()) for mask in masks.values()) / 192 for _, masks in seen]
    assert kept[:3] == [1.0] * 3
    assert kept[3] == pytest.approx(0.8, abs=0.01)
    assert kept[11] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("algorithm", ["set", "rigl"])
def test_dynamic_masks_move_and_keep_their_density(algorithm):
    tree = {
        "algorithm": algorithm,
        "sparsity": 0.75,
        "update": {"freq": 3, "stop": 10},
        "drop_fraction": {"type": "cosine", "init": 0.3, "half_period": 10},
    }
    _, sparse, seen = trained(tree)
    assert sparse.density == 0.25
    moved = [not torch.equal(seen[step][1]["0.weight"], seen[step - 1][1]["0.weight"]) for step in range(1, 12)]
    assert [step + 2 for step, change in enumerate(moved) if change] == [3, 6, 9]
    again = trained(tree)[2]
    assert [loss for loss, _ in again] == [loss for loss, _ in seen]


def test_rigl_grows_where_the_gradient_is_largest():
    rigl = make_algorithm({"algorithm": "rigl", "sparsity": 0.5, "drop_fraction": 0.5})
    weight, gradient = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 0.5, 1, 9, 2, 8]])
    mask = rigl.next("w", 1, 0, weight, weight != 0, gradient)
    assert mask.tolist() == [[True, True, False, False, False, True, False, True]]


def test_a_state_is_taken_and_given_back():
    tree = {"algorithm": "set", "sparsity": 0.5, "update": {"freq": 2}}
    model, sparse, _ = trained(tree)
    other = SparseModel(model, [(is_sparse_by_default, make_algorithm(tree, seed=9))])
    other.load_state_dict(sparse.state_dict())
    assert other.step_count == 12
    assert all(torch.equal(other.masks[name], mask) for name, mask in sparse.masks.items())


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"algorithm": "magic", "sparsity": 0.5}, "is none of static, gmp, set, rigl"),
        ({"algorithm": "gmp", "sparsity": 0.5}, "would never change"),
        ({"sparsity": [0.1, 0.2]}, "static needs one number"),
        ({"sparsity": 1.0}, "below 1"),
        ({"sparsity": 0.5, "init_method": "best"}, "init_method"),
        ({"sparsity": 0.5, "drop_fraction": 0.1}, "no option drop_fraction"),
        ({"algorithm": "rigl", "sparsity": 0.5, "balance_in_groups": 2, "balance_out_groups": 2}, "exclude"),
        ({"algorithm": "set", "sparsity": {"type": "steps"}}, "sparsity"),
    ],
)
def test_mistakes_are_named(tree, says):
    with pytest.raises(ConfigError, match=says):
        make_algorithm(tree)
