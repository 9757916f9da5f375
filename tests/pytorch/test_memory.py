"""How a budget is divided, and a step into rounds."""

from dataclasses import replace

import pytest
import torch

from openwafer.base.errors import BudgetError
from openwafer.pytorch.memory import (
    Demand,
    MemoryPlan,
    compute_seconds,
    divide,
    divide_rounds,
    gradient_spills,
    io_seconds,
    least,
    predict_seconds,
)
from openwafer.pytorch.profile import Profile, Segment
from openwafer.streaming.page import StateTensor, layout_page

LAYERS = 8
WEIGHTS = 16 << 20
SAVED = 64 << 20
OUTPUT = 4 << 20
STATE = tuple(StateTensor(name, (WEIGHTS // 4,), torch.float32) for name in ("exp_avg", "exp_avg_sq"))


def demand(micro_batches: int, read_bytes_s: float = 1e12) -> Demand:
    """Eight equal layers, each of which saves much more than it returns."""
    specs = tuple(
        layout_page(i, f"layer{i}", torch.float32, True, [("weight", (WEIGHTS // 4,), 0, STATE)], True)
        for i in range(LAYERS)
    )
    forward = [Segment(False, i, i * SAVED, (i + 1) * SAVED) for i in range(LAYERS)]
    backward = [
        Segment(True, i, (i + 1) * SAVED, (i + 1) * SAVED + OUTPUT, specs[i].param_bytes) for i in range(LAYERS)
    ]
    order = list(range(LAYERS))
    profile = Profile(order, [SAVED] * LAYERS, [OUTPUT] * LAYERS, forward + backward[::-1], 1e12, 0.0)
    accesses = tuple((i,) for i in order + order[::-1])
    rates = (1e12, 1e12, read_bytes_s, read_bytes_s)
    return Demand(100 << 20, 0, specs, (), accesses, profile, micro_batches, *rates)


def test_rounds_keep_activations_where_traffic_is_hidden() -> None:
    together = demand(4)
    budget = least(together).peak_bytes + 2 * SAVED
    rounds, plan = divide_rounds(together, budget, least)
    assert rounds.micro_batches * rounds.rounds == 4
    assert plan.group == rounds.micro_batches < 4
    assert plan.peak_bytes <= budget
    all_at_once = divide(together, budget, least(together))
    assert len(plan.keep) > len(all_at_once.keep)
    assert predict_seconds(rounds, plan) < predict_seconds(together, all_at_once)


def test_a_slow_disk_keeps_micro_batches_together() -> None:
    together = demand(4, read_bytes_s=1e6)
    rounds, plan = divide_rounds(together, least(together).peak_bytes + 2 * SAVED, least)
    assert (rounds.rounds, plan.group) == (1, 4)


def test_enough_memory_keeps_micro_batches_together() -> None:
    _, plan = divide_rounds(demand(4), 1 << 40, least)
    assert plan.group == 4 and len(plan.keep) == LAYERS


def test_rounds_fit_where_all_together_do_not() -> None:
    together, alone = demand(16), replace(demand(1), rounds=16)
    assert least(alone).peak_bytes < least(together).peak_bytes
    _, plan = divide_rounds(together, least(alone).peak_bytes, least)
    assert plan.group == 1


def test_the_refusal_names_what_the_smallest_rounds_need() -> None:
    needed = -(-least(replace(demand(1), rounds=6)).peak_bytes // (1 << 20))
    with pytest.raises(BudgetError, match=f"needs at least {needed}MiB"):
        divide_rounds(demand(6), 1 << 20, least)


def test_traffic_of_rounds() -> None:
    """Every round spills the gradients that do not fit and takes them back; states cross once a step."""
    one, three = demand(1), replace(demand(1), rounds=3)
    first, plan = least(one), least(three)
    state = sum(spec.state_bytes for spec in one.specs)
    spilled = gradient_spills(one, 0)
    assert spilled == LAYERS * one.specs[0].param_bytes
    written = sum(spec.param_bytes + spec.state_bytes for spec in one.specs)
    assert first.write_bytes == written + spilled and plan.write_bytes == written + 3 * spilled
    assert plan.read_bytes - state == 3 * (first.read_bytes - state)


def test_seconds_of_rounds_count_gradients_that_come_back() -> None:
    three = replace(demand(1, read_bytes_s=1e9), rounds=3)
    plan = least(three)
    keeping = replace(plan, grad_bytes=1 << 40)
    back = 2 * gradient_spills(three, 0) / three.read_bytes_s
    assert compute_seconds(three, plan) - compute_seconds(three, keeping) == pytest.approx(back)
    assert isinstance(plan, MemoryPlan) and io_seconds(three, plan) > 0
