"""Schedules against torch's own where it has them, and against the published formula written out where it has not."""

import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as torch_lr

from openwafer.train.schedules import dump_schedule, parse_driven, parse_schedule, schedule_names

LR = 0.3


def by_torch(make, steps=40, lr=LR):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of schedulers stepped past their end and of chained epochs
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return values


def ours(name, steps=40, **options):
    schedule = parse_schedule({name: options})
    return [schedule.at(step) for step in range(steps)]


CASES = {
    "constant": (
        ("ConstantLR", dict(learning_rate=LR)),
        lambda o: torch_lr.ConstantLR(o, factor=1.0),
    ),
    "linear": (
        ("LinearLR", dict(initial_learning_rate=0.03, end_learning_rate=LR, total_iters=11)),
        lambda o: torch_lr.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=11),
    ),
    "polynomial": (
        ("PolynomialLR", dict(initial_learning_rate=LR, end_learning_rate=0, total_iters=13, power=2.5)),
        lambda o: torch_lr.PolynomialLR(o, total_iters=13, power=2.5),
    ),
    "exponential": (
        ("ExponentialLR", dict(initial_learning_rate=LR, total_iters=1, decay_rate=0.9)),
        lambda o: torch_lr.ExponentialLR(o, gamma=0.9),
    ),
    "staircase": (
        ("ExponentialLR", dict(initial_learning_rate=LR, total_iters=7, decay_rate=0.9, staircase=True)),
        lambda o: torch_lr.StepLR(o, step_size=7, gamma=0.9),
    ),
    "step": (
        ("StepLR", dict(initial_learning_rate=LR, step_size=5, gamma=0.5)),
        lambda o: torch_lr.StepLR(o, step_size=5, gamma=0.5),
    ),
    "multistep": (
        ("MultiStepLR", dict(initial_learning_rate=LR, gamma=0.2, milestones=[4, 19, 20])),
        lambda o: torch_lr.MultiStepLR(o, milestones=[4, 19, 20], gamma=0.2),
    ),
    "cosine annealing": (
        ("CosineAnnealingLR", dict(initial_learning_rate=LR, T_max=9, eta_min=0.01)),
        lambda o: torch_lr.CosineAnnealingLR(o, T_max=9, eta_min=0.01),
    ),
    "warm restarts": (
        ("CosineAnnealingWarmRestarts", dict(initial_learning_rate=LR, T_0=6, eta_min=0.02)),
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, T_0=6, eta_min=0.02),
    ),
    "longer restarts": (
        ("CosineAnnealingWarmRestarts", dict(initial_learning_rate=LR, T_0=3, T_mult=2)),
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    ),
    "multiplicative": (
        ("MultiplicativeLR", dict(initial_learning_rate=LR, coefficient=0.95)),
        lambda o: torch_lr.MultiplicativeLR(o, lambda step: 0.95),
    ),
    "cyclic": (
        ("CyclicLR", dict(base_lr=0.1, max_lr=LR, step_size_up=4, step_size_down=7)),
        lambda o: torch_lr.CyclicLR(o, 0.1, LR, step_size_up=4, step_size_down=7, cycle_momentum=False),
    ),
    "cyclic, halving": (
        ("CyclicLR", dict(base_lr=0.1, max_lr=LR, step_size_up=4, mode="triangular2")),
        lambda o: torch_lr.CyclicLR(o, 0.1, LR, step_size_up=4, mode="triangular2", cycle_momentum=False),
    ),
    "cyclic, shrinking": (
        (
            "CyclicLR",
            dict(base_lr=0.1, max_lr=LR, step_size_up=4, mode="exp_range", gamma=0.9, scale_mode="iterations"),
        ),
        lambda o: torch_lr.CyclicLR(o, 0.1, LR, step_size_up=4, mode="exp_range", gamma=0.9, cycle_momentum=False),
    ),
    "one cycle": (
        ("OneCycleLR", dict(initial_learning_rate=LR / 25, max_lr=LR, total_steps=40)),
        lambda o: torch_lr.OneCycleLR(o, LR, total_steps=40, cycle_momentum=False),
    ),
    "one cycle, straight": (
        ("OneCycleLR", dict(initial_learning_rate=LR / 25, max_lr=LR, total_steps=40, anneal_strategy="linear")),
        lambda o: torch_lr.OneCycleLR(o, LR, total_steps=40, anneal_strategy="linear", cycle_momentum=False),
    ),
    "one cycle, three phases": (
        ("OneCycleLR", dict(initial_learning_rate=LR / 25, max_lr=LR, total_steps=40, three_phase=True)),
        lambda o: torch_lr.OneCycleLR(o, LR, total_steps=40, three_phase=True, cycle_momentum=False),
    ),
    "sequence": (
        (
            "SequentialLR",
            dict(
                schedulers=[
                    {"LinearLR": dict(initial_learning_rate=0.003, end_learning_rate=LR, total_iters=10)},
                    {"CosineAnnealingLR": dict(initial_learning_rate=LR, T_max=30)},
                ],
                milestones=[10],
            ),
        ),
        lambda o: torch_lr.SequentialLR(
            o,
            [torch_lr.LinearLR(o, start_factor=0.01, total_iters=10), torch_lr.CosineAnnealingLR(o, T_max=30)],
            milestones=[10],
        ),
    ),
    "chain": (
        (
            "ChainedScheduler",
            dict(
                schedulers=[
                    {"ExponentialLR": dict(initial_learning_rate=LR, total_iters=1, decay_rate=0.98)},
                    {"StepLR": dict(initial_learning_rate=LR, step_size=6, gamma=0.5)},
                ]
            ),
        ),
        lambda o: torch_lr.ChainedScheduler([torch_lr.ExponentialLR(o, 0.98), torch_lr.StepLR(o, 6, 0.5)]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case):
    (name, options), make = CASES[case]
    assert ours(name, **options) == pytest.approx(by_torch(make), rel=1e-6, abs=1e-12)


def test_cosine_decay_is_half_a_cosine_and_then_holds():
    values = ours("CosineDecayLR", initial_learning_rate=2.0, end_learning_rate=0.5, total_iters=8)
    assert values[0] == 2.0
    assert values[4] == pytest.approx(1.25)
    assert values[8:] == [0.5] * 32
    assert values[2] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_inverse_decays():
    time = ours("InverseExponentialTimeDecayLR", initial_learning_rate=2, step_exponent=2, total_iters=4, decay_rate=3)
    assert time[6] == pytest.approx(2 / (1 + 3 * 36 / 4))
    root = ours("InverseSquareRootDecayLR", initial_learning_rate=2, scale=3, warmup_steps=4)
    assert root[1] == root[4] == 3.0
    assert root[9] == 2.0


def test_piecewise_constant():
    assert ours("PiecewiseConstantLR", 6, learning_rates=[3, 2, 1], milestones=[2, 4]) == [3, 3, 2, 2, 1, 1]


def test_btlm_warms_up_and_falls_as_published():
    """BTLM-3B-8K's own schedule; a sequence without milestones lets each part last its total_iters."""
    btlm = parse_schedule(
        {
            "SequentialLR": {
                "schedulers": [
                    {"LinearLR": dict(initial_learning_rate=0.0, end_learning_rate=0.012, total_iters=95)},
                    {"LinearLR": dict(initial_learning_rate=0.012, end_learning_rate=0.00010198, total_iters=159541)},
                ]
            }
        }
    )
    assert btlm.at(0) == 0.0
    assert btlm.at(95) == 0.012
    assert btlm.at(159_636) == 0.00010198
    assert btlm.at(119_727) == pytest.approx(0.012 - (0.012 - 0.00010198) * (119_727 - 95) / 159_541)


def test_every_schedule_of_the_reference_is_there():
    listed = """Constant Polynomial Linear Exponential InverseExponentialTimeDecay InverseSquareRootDecay CosineDecay
        Sequential PiecewiseConstant MultiStep Step CosineAnnealing Lambda Multiplicative Chained Cyclic OneCycle
        ScalePerParam""".split()
    assert {f"{name}{kind}" for name in listed for kind in ("LR", "WD")} < set(schedule_names())
    assert "CosineAnnealingWarmRestarts" in schedule_names()


def test_weight_decay_is_driven_by_the_same_forms():
    driven = parse_driven({"LinearWD": dict(initial_val=0.1, end_val=0.0, total_iters=10)})
    assert driven.option == "weight_decay"
    assert driven.schedule.at(5) == pytest.approx(0.05)


@pytest.mark.parametrize("case", CASES)
def test_written_and_read_back(case):
    (name, options), _ = CASES[case]
    schedule = parse_schedule({name: options})
    assert parse_schedule(dump_schedule(schedule)) == schedule


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"LinaerLR": {}}, "'LinaerLR' is not a scheduler; known are"),
        ({"LinearLR": {"initial_learning_rate": 1.0, "total_iters": 3}}, "end_learning_rate"),
        ({"SequentialLR": {"schedulers": [{"StepLR": dict(initial_val=1, gamma=1, step_size=1)}] * 2}}, "milestones"),
        ({"PiecewiseConstantLR": {"learning_rates": [1, 2], "milestones": [1, 2]}}, "2 values need 1 milestones"),
        ("LinearLR", "one name with its options"),
    ],
)
def test_mistakes_are_named(tree, says):
    with pytest.raises(ValueError, match=says):
        parse_schedule(tree)
