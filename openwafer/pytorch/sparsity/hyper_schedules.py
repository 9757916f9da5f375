"""How sparsity and drop fraction change, and at which steps masks are updated.

Source of names and formulas: documentation of `cerebras_pytorch` 2.10, `sparse` hyperparameter schedules.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

_KEYS = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Constant(BaseModel):
    """value."""

    model_config = _KEYS
    type: Literal["constant"] = "constant"
    value: float

    def at(self, step: int, updates: int) -> float:
        return self.value


class Linear(BaseModel):
    """init + slope * step."""

    model_config = _KEYS
    type: Literal["linear"] = "linear"
    init: float
    slope: float

    def at(self, step: int, updates: int) -> float:
        return self.init + self.slope * step


class Exp(BaseModel):
    """final - (final - init) * exp(gamma * step)."""

    model_config = _KEYS
    type: Literal["exp"] = "exp"
    init: float
    gamma: float
    final: float = 1.0

    def at(self, step: int, updates: int) -> float:
        return self.final - (self.final - self.init) * math.exp(self.gamma * step)


class Power(BaseModel):
    """init * beta^step."""

    model_config = _KEYS
    type: Literal["power"] = "power"
    init: float
    beta: float

    def at(self, step: int, updates: int) -> float:
        return self.init * self.beta**step


class Cosine(BaseModel):
    """From init to minimum and back, half a period each way."""

    model_config = _KEYS
    type: Literal["cosine"] = "cosine"
    init: float
    half_period: Annotated[float, Field(gt=0)]
    minimum: float = 0.0

    def at(self, step: int, updates: int) -> float:
        middle = (self.minimum + self.init) / 2
        return middle + (self.init - middle) * math.cos(math.pi * step / self.half_period)


class Cycling(BaseModel):
    """One value after another, from update to update, then from the start again."""

    model_config = _KEYS
    type: Literal["cycling"] = "cycling"
    values: Annotated[list[float], Field(min_length=1)]

    def at(self, step: int, updates: int) -> float:
        return self.values[updates % len(self.values)]


HyperSchedule = Constant | Linear | Exp | Power | Cosine | Cycling
"""`at(step, updates)`: the value at a step, before which so many updates have been made."""

_BY_TYPE: TypeAdapter[HyperSchedule] = TypeAdapter(Annotated[HyperSchedule, Field(discriminator="type")])


def parse_hyper_schedule(tree: Any) -> HyperSchedule:
    """A number, a list of numbers, or a mapping with `type`.

    Raises:
        ValueError: anything else; pydantic's ValidationError is one.
    """
    if isinstance(tree, int | float):
        return Constant(value=tree)
    if isinstance(tree, list):
        return Cycling(values=tree)
    if isinstance(tree, Mapping):
        return _BY_TYPE.validate_python({**tree, "type": str(tree.get("type", "")).lower()})
    raise ValueError(f"a schedule is a number, a list of numbers or a mapping with type, got {tree!r}")


class EveryFew(BaseModel):
    """Steps start, start + freq, ... below stop."""

    model_config = _KEYS
    freq: Annotated[int, Field(ge=1)] = 1
    start: Annotated[int, Field(ge=0)] = 0
    stop: Annotated[int, Field(ge=0)] | None = None

    def is_update(self, step: int) -> bool:
        """Whether masks are updated at this step."""
        stopped = self.stop is not None and step >= self.stop
        return not stopped and step >= self.start and (step - self.start) % self.freq == 0


class AtSteps(BaseModel):
    """The steps of a list."""

    model_config = _KEYS
    steps: Annotated[list[int], Field(min_length=1)]

    def is_update(self, step: int) -> bool:
        """Whether masks are updated at this step."""
        return step in self.steps


UpdateSchedule = EveryFew | AtSteps


def parse_update_schedule(tree: Any) -> UpdateSchedule:
    """None (every step), {freq, start, stop} or {steps}.

    Raises:
        ValueError: anything else.
    """
    if tree is None:
        return EveryFew()
    if not isinstance(tree, Mapping) or not {"freq", "steps"} & set(tree):
        raise ValueError(f"update is {{freq, start, stop}} or {{steps}}, got {tree!r}")
    return AtSteps.model_validate(tree) if "steps" in tree else EveryFew.model_validate(tree)
