"""Micro-batches take turns: at every border the lowest index first, whatever each of them leaves out."""

import threading

import pytest
import torch

from openwafer.pytorch.schedule import Abandoned, Baton, run_together


def run(paths: list[str], order: str = "") -> list[tuple[str, int]]:
    """Let one micro-batch walk along each path of borders; what happened, in order."""
    stops = {letter: letter for letter in "".join(paths) + order}
    baton = Baton([torch.get_rng_state()] * len(paths), [stops[letter] for letter in order])
    seen: list[tuple[str, int]] = []

    def walk(index: int) -> None:
        for letter in paths[index]:
            baton.reach(index, stops[letter])
            seen.append((letter, index))

    run_together(baton, [lambda index=index: walk(index) for index in range(len(paths))])
    return seen


def test_same_path() -> None:
    assert run(["abc"] * 3) == [(letter, index) for letter in "abc" for index in range(3)]


def test_there_and_back() -> None:
    assert run(["abcbA"] * 2) == [(letter, index) for letter in "abcbA" for index in range(2)]


@pytest.mark.parametrize("paths", [["abd", "acd"], ["ad", "abcd"], ["abcd", "ad", "acd"]])
def test_known_order_with_gaps(paths: list[str]) -> None:
    """With the order known, no micro-batch passes a border that another has still to pass."""
    seen = run(paths, "abcd")
    assert seen == sorted(seen)


def test_unknown_order_with_gaps() -> None:
    """Without it every micro-batch still passes each of its borders once, in its own order."""
    paths = ["abd", "acd", "d"]
    seen = run(paths)
    assert ["".join(letter for letter, who in seen if who == index) for index in range(3)] == paths


def test_only_one_runs_at_a_time() -> None:
    running = threading.Lock()
    baton = Baton([torch.get_rng_state()] * 4)

    def walk(index: int) -> None:
        for stop in range(20):
            baton.reach(index, stop)
            assert running.acquire(blocking=False)
            running.release()

    run_together(baton, [lambda index=index: walk(index) for index in range(4)])


def test_each_has_its_own_random_state() -> None:
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
    baton = Baton(states)
    drawn: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def draw(index: int) -> None:
        for stop in range(3):
            baton.reach(index, stop)
            drawn[index].append(float(torch.rand(())))

    run_together(baton, [lambda index=index: draw(index) for index in range(3)])
    for seed in range(3):
        torch.manual_seed(seed)
        assert drawn[seed] == [float(torch.rand(())) for _ in range(3)]
        assert torch.equal(baton.random_states[seed], torch.get_rng_state())


def test_failure_abandons_the_others() -> None:
    baton = Baton([torch.get_rng_state()] * 3)
    ended: list[int] = []

    def walk(index: int) -> None:
        try:
            for stop in range(5):
                baton.reach(index, stop)
                if index == 1 and stop == 2:
                    raise KeyError("one of three")
        except Abandoned:
            ended.append(index)
            raise

    with pytest.raises(KeyError, match="one of three"):
        run_together(baton, [lambda index=index: walk(index) for index in range(3)])
    assert sorted(ended) == [0, 2]
