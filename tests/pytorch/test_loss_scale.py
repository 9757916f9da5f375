"""The rule of the loss scale against torch's own, and against counts."""

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.pytorch.loss_scale import LossScale, LossScaleOptions


def test_halves_and_doubles_as_torch_does():
    """torch doubles with the n-th good step, we after more than n: with n - 1 the two are one rule."""
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    ours = LossScale(LossScaleOptions(initial=1024.0, steps_per_increase=3, largest=2.0**20))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for step in range(40):
        finite = step % 7 != 3 and step not in (15, 16)
        theirs.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), 1.0 if finite else float("inf"))
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert ours.scale == theirs.get_scale(), step


def test_stays_within_its_bounds_and_tolerates_some_overflows():
    scale = LossScale(LossScaleOptions(initial=4.0, smallest=1.0, largest=8.0, steps_per_increase=1))
    for _ in range(5):
        scale.update(False)
    assert scale.scale == 1.0
    for _ in range(20):
        scale.update(True)
    assert scale.scale == 8.0
    patient = LossScale(LossScaleOptions(initial=4.0, overflow_tolerance=0.4))
    for finite in (True, True, False, True, False):
        patient.update(finite)
    assert patient.scale == 4.0, "two of five are not over 0.4"
    patient.update(False)
    assert patient.scale == 2.0


def test_begins_at_the_largest_and_survives_a_restart():
    scale = LossScale()
    assert scale.scale == 2.0**15
    scale.update(False)
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()
    with pytest.raises(ConfigError, match="cannot lie between"):
        LossScaleOptions(smallest=2.0, largest=1.0)
