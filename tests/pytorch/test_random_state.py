"""Arithmetic on torch's generator, against torch's own draws."""

import json
import random

import numpy as np
import pytest
import torch

from openwafer.pytorch import random_state
from openwafer.pytorch.random_state import RandomState, advance, distance


@pytest.mark.parametrize("draws", [0, 1, 2, 100, 623, 624, 625, 1247, 1248, 1249, 10_000])
@pytest.mark.parametrize("before", [0, 1, 5, 623, 624, 700])
def test_advance_and_distance(before: int, draws: int) -> None:
    """`random_` of int32 takes one draw an element."""
    torch.manual_seed(before)
    torch.empty(before, dtype=torch.int32).random_()
    start = torch.get_rng_state()
    torch.empty(draws, dtype=torch.int32).random_()
    end = torch.get_rng_state()
    assert torch.equal(advance(start, draws), end)
    assert distance(start, end) == draws
    torch.set_rng_state(advance(start, draws))
    left = torch.rand(1000)
    torch.set_rng_state(end)
    assert torch.equal(left, torch.rand(1000))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1000),
        lambda: torch.rand(7, dtype=torch.float64),
        lambda: torch.randn(16),
        lambda: torch.randn(1024),
        lambda: torch.nn.functional.dropout(torch.ones(3, 333), 0.3),
        lambda: torch.bernoulli(torch.full((10,), 0.5)),
        lambda: torch.randperm(100),
        lambda: torch.multinomial(torch.ones(50), 20),
        lambda: torch.randint(7, (33,)),
        lambda: torch.empty(50).exponential_(),
    ],
)
def test_distances_add_up(draw) -> None:
    """A micro-batch can begin where the one before it will end."""
    states = [torch.get_rng_state()]
    for _ in range(3):
        draw()
        states.append(torch.get_rng_state())
    first, second, third = (distance(a, b) for a, b in zip(states, states[1:], strict=False))
    assert first is not None
    assert first == second == third
    assert torch.equal(advance(advance(states[0], first), first), states[2])


def test_cached_normal_is_not_a_distance() -> None:
    """randn of fewer than 16 elements keeps half a pair: the states join only if that is the same, too."""
    torch.manual_seed(1)
    start = torch.get_rng_state()
    torch.randn(3)
    end = torch.get_rng_state()
    draws = distance(start, end)
    assert draws is not None
    assert not torch.equal(advance(start, draws), end)


def test_unrelated_states(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    start = torch.get_rng_state()
    torch.rand(3)
    later = torch.get_rng_state()
    torch.manual_seed(2)
    assert distance(start, torch.get_rng_state()) is None
    monkeypatch.setattr(random_state, "DRAWS_MOST", 1 << 20)
    assert distance(later, start) is None


def test_save_and_restore_as_json() -> None:
    torch.randn(3), np.random.randn(3), random.gauss(0, 1)
    saved = json.loads(json.dumps(random_state.save()))
    expected = torch.randn(5).tolist(), np.random.randn(5).tolist(), [random.gauss(0, 1) for _ in range(5)]
    random_state.restore(saved)
    assert expected == (torch.randn(5).tolist(), np.random.randn(5).tolist(), [random.gauss(0, 1) for _ in range(5)])


def test_put_back() -> None:
    state = RandomState()
    assert state.is_now()
    first = torch.rand(3), np.random.rand(), random.random()
    assert not state.is_now()
    assert not state.others_are_now()
    with state.put_back():
        again = torch.rand(3), np.random.rand(), random.random()
    later = torch.rand(3)
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
    state.restore()
    torch.rand(3)
    assert torch.equal(torch.rand(3), later)
