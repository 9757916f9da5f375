"""The noise scale of gradients whose mean and covariance are known."""

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.pytorch.gradient_noise import GradientNoiseScale, unbiased


def test_finds_the_noise_scale_of_a_known_distribution():
    """Samples g = G + noise with |G|^2 = 4 and tr(Sigma) = 100 * 0.25 = 25: the scale is 6.25."""
    torch.manual_seed(0)
    mean = torch.full((100,), 0.2)
    running = GradientNoiseScale(beta=0.999)
    for _ in range(4000):
        samples = mean + 0.5 * torch.randn(64, 100)
        small = samples.view(16, 4, 100).mean(1).square().sum(1).mean().item()
        large = samples.mean(0).square().sum().item()
        running.update(small, 4, large, 64)
    assert running.value == pytest.approx(6.25, rel=0.02)


def test_is_exact_without_noise_and_unknown_without_signal():
    assert unbiased(9.0, 1, 9.0, 8) == (9.0, 0.0)
    running = GradientNoiseScale()
    assert running.value is None
    running.update(8.0, 1, 1.0, 8)
    assert running.value is None
    with pytest.raises(ConfigError, match="smaller than the large"):
        unbiased(1.0, 8, 1.0, 8)
