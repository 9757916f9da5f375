"""The permutation: a bijection fixed by its keys, and no worse mixed than chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.data import Permutation

integers = st.integers(-(2**70), 2**70)


@given(st.integers(1, 600), integers, integers)
def test_is_a_bijection_and_a_function_of_its_keys(size, seed, epoch):
    order = [Permutation(size, seed, epoch)[i] for i in range(size)]
    assert sorted(order) == list(range(size))
    again = Permutation(size, seed, epoch)
    assert order == [again[i] for i in range(size)]


@given(st.integers(2**40, 2**64), st.integers(0, 2**40 - 1), st.integers(0, 2**40 - 1), integers)
def test_huge_sizes_stay_inside_and_injective(size, first, second, seed):
    order = Permutation(size, seed)
    assert 0 <= order[first] < size
    assert (order[first] == order[second]) == (first == second)


@pytest.mark.parametrize("keys", [((0,), (1,)), ((0, 0), (0, 1)), ((1, 0), (0, 1)), ((5,), (-5,))])
def test_other_keys_other_order(keys):
    first, second = (Permutation(1000, *key) for key in keys)
    same = sum(first[i] == second[i] for i in range(1000))
    assert same < 10  # one is expected by chance


def test_mixes_like_chance():
    # Positions against items in a 10 x 10 table over 200 orders: chi-square with 81 degrees of freedom.
    table = np.zeros((10, 10))
    for seed in range(200):
        order = Permutation(50, seed)
        for i in range(50):
            table[i // 5, order[i] // 5] += 1
    expected = 200 * 50 / 100
    statistic = ((table - expected) ** 2 / expected).sum()
    assert 45 < statistic < 130  # far beyond the 0.1 % points on both sides


def test_neighbours_are_torn_apart():
    order = [Permutation(10_000, 7)[i] for i in range(10_000)]
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.04


@pytest.mark.parametrize("index", [-1, 5])
def test_outside_is_refused(index):
    with pytest.raises(IndexError, match=r"outside range\(5\)"):
        Permutation(5, 0)[index]
