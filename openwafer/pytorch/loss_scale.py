"""The dynamic loss scale of fp16 training: doubled after many good steps, halved when too many overflow.

Only the rule; who multiplies the loss and divides the gradients is not told here, and bf16 needs none of it. Source:
documentation of `cerebras_pytorch` 2.10, amp.GradScaler; with tolerance 0 it is torch.amp.GradScaler's rule but for the
step at which it doubles: after more than `steps_per_increase` good ones, not with the last of them.
"""

from dataclasses import dataclass

from openwafer.base.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossScaleOptions:
    """Bounds and patience.

    Attributes:
        initial: scale to begin with; None for the largest.
        steps_per_increase: good steps before it doubles.
        smallest, largest: it stays between them.
        overflow_tolerance: share of overflows since the last change above which it halves.

    Raises:
        ConfigError: bounds that exclude each other, or a negative tolerance.
    """

    initial: float | None = None
    steps_per_increase: int = 2000
    smallest: float = 2.0**-14
    largest: float = 2.0**15
    overflow_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest:
            raise ConfigError(f"the loss scale cannot lie between {self.smallest} and {self.largest}")
        if self.overflow_tolerance < 0 or self.steps_per_increase < 1:
            raise ConfigError("overflow_tolerance must not be negative, and steps_per_increase at least 1")


class LossScale:
    """The scale by which the next step's loss is multiplied."""

    def __init__(self, options: LossScaleOptions = LossScaleOptions()):
        self._options = options
        self.scale = min(options.largest, options.initial or options.largest)
        self._steps = self._overflows = 0

    def update(self, is_finite: bool) -> None:
        """Take note of a step whose gradients were finite or not."""
        self._steps += 1
        self._overflows += not is_finite
        if self._overflows / self._steps > self._options.overflow_tolerance:
            self._change(0.5)
        elif self._steps > self._options.steps_per_increase:
            self._change(2.0)

    def _change(self, factor: float) -> None:
        self.scale = min(self._options.largest, max(self._options.smallest, self.scale * factor))
        self._steps = self._overflows = 0

    def state_dict(self) -> dict[str, float]:
        """Scale and counts."""
        return {"scale": self.scale, "steps": self._steps, "overflows": self._overflows}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where `state_dict` was taken."""
        self.scale = state["scale"]
        self._steps, self._overflows = int(state["steps"]), int(state["overflows"])
