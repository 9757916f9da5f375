"""The gradient noise scale: at which batch size more samples stop to be worth it.

From the squared norms of the gradient of small batches and of the large batch they make up. Source: McCandlish et al.,
arXiv 1812.06162, appendix A.1; per-example norms are the case of a small batch of one (Gray et al., arXiv 2406.00271).
"""

from dataclasses import dataclass

from openwafer.base.errors import ConfigError


def unbiased(small_norm_sq: float, small: int, large_norm_sq: float, large: int) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and of tr(Sigma), G the true gradient and Sigma the covariance of a sample's.

    Args:
        small_norm_sq: mean of |g|^2 over batches of `small` samples.
        large_norm_sq: |g|^2 of a batch of `large` samples.
    """
    if not 0 < small < large:
        raise ConfigError(f"the small batch must be smaller than the large one, got {small} and {large}")
    signal = (large * large_norm_sq - small * small_norm_sq) / (large - small)
    noise = (small_norm_sq - large_norm_sq) / (1 / small - 1 / large)
    return signal, noise


@dataclass
class GradientNoiseScale:
    """Running estimate of tr(Sigma) / |G|^2, in samples; both are averaged apart, as the ratio of noisy values is not.

    Attributes:
        beta: of the exponential averages.
    """

    beta: float = 0.95
    _signal: float = 0.0
    _noise: float = 0.0
    _weight: float = 0.0

    def update(self, small_norm_sq: float, small: int, large_norm_sq: float, large: int) -> None:
        """Take in one step; arguments as `unbiased`."""
        signal, noise = unbiased(small_norm_sq, small, large_norm_sq, large)
        self._signal = self.beta * self._signal + (1 - self.beta) * signal
        self._noise = self.beta * self._noise + (1 - self.beta) * noise
        self._weight = self.beta * self._weight + (1 - self.beta)

    @property
    def value(self) -> float | None:
        """The scale in samples; None while the estimate of |G|^2 is not above 0."""
        return self._noise / self._signal if self._signal > 0 else None
