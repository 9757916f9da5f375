"""Learning rate and weight decay as closed forms of the number of steps done, by the names of ModelZoo 2.x.

A schedule is a frozen description with one method, `at(step)`; it keeps no state, so a resumed run is on its curve
at once. `step` counts optimizer steps done, so the first step of a run uses `at(0)`.
Source: the public `cerebras_pytorch` 2.10 documentation of `optim.lr_scheduler` and `optim.scheduler`; where a schedule
carries the name of one in torch.optim.lr_scheduler, its formula is torch's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator


def _named(*names: str, **options: Any) -> Any:
    return Field(validation_alias=AliasChoices(*names), **options)


Steps = Annotated[int, Field(ge=1)]


class Schedule(BaseModel):
    """A value by step. Every field has ModelZoo's name for learning rates, and the one for weight decay."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    param_group_tags: list[str | None] | str | None = None
    """Which parameter groups it drives; None for all."""

    def at(self, step: int) -> float:
        """The value for the optimizer step that follows ``step`` steps."""
        raise NotImplementedError

    @property
    def span(self) -> int | None:
        """Steps after which the next schedule of a sequence takes over, if it says."""
        return getattr(self, "total_iters", None)

    @property
    def first(self) -> float:
        """What a chain divides by: the value that the schedule starts from."""
        return getattr(self, "initial_val", self.at(0))

    def drives(self, tags: frozenset[str]) -> bool:
        """Whether a parameter group with these tags follows it."""
        if self.param_group_tags is None:
            return True
        wanted = [self.param_group_tags] if isinstance(self.param_group_tags, str) else self.param_group_tags
        return bool(tags & {tag for tag in wanted if tag is not None}) if tags else None in wanted


def _between(initial: float, end: float, share: float) -> float:
    """`share` of the way from end to initial, exact at both."""
    return share * initial + (1 - share) * end


_initial = _named("initial_learning_rate", "initial_val")
_end = _named("end_learning_rate", "end_val")


class Constant(Schedule):
    """One value."""

    val: float = _named("learning_rate", "val")
    total_iters: Steps | None = None

    def at(self, step: int) -> float:
        return self.val

    @property
    def first(self) -> float:
        return self.val


class Polynomial(Schedule):
    """From initial to end along (1 - step/total)^power, then end. `cycle` changes nothing in cerebras_pytorch 2.10."""

    initial_val: float = _initial
    end_val: float = _end
    total_iters: Steps
    power: float = 1.0
    cycle: bool = False

    def at(self, step: int) -> float:
        if step >= self.total_iters:
            return self.end_val
        return _between(self.initial_val, self.end_val, (1 - step / self.total_iters) ** self.power)


class Linear(Schedule):
    """A straight line from initial to end, then end. `cycle` changes nothing in cerebras_pytorch 2.10."""

    initial_val: float = _initial
    end_val: float = _end
    total_iters: Steps
    cycle: bool = False

    def at(self, step: int) -> float:
        if step >= self.total_iters:
            return self.end_val
        return _between(self.initial_val, self.end_val, 1 - step / self.total_iters)


class Exponential(Schedule):
    """initial * decay_rate^(step/total), the exponent floored by `staircase`."""

    initial_val: float = _initial
    total_iters: Steps
    decay_rate: Annotated[float, Field(gt=0)]
    staircase: bool = False

    def at(self, step: int) -> float:
        power = step // self.total_iters if self.staircase else step / self.total_iters
        return self.initial_val * self.decay_rate**power


class InverseExponentialTimeDecay(Schedule):
    """initial / (1 + decay_rate * step^exponent / total), the fraction floored by `staircase`."""

    initial_val: float = _initial
    step_exponent: float
    total_iters: Steps
    decay_rate: Annotated[float, Field(ge=0)]
    staircase: bool = False

    def at(self, step: int) -> float:
        alpha = step**self.step_exponent / self.total_iters
        return self.initial_val / (1 + self.decay_rate * (math.floor(alpha) if self.staircase else alpha))


class InverseSquareRootDecay(Schedule):
    """initial * scale / sqrt(max(step, warmup_steps))."""

    initial_val: float = _named("initial_learning_rate", "initial_val", default=1.0)
    scale: float = 1.0
    warmup_steps: Annotated[float, Field(gt=0)] = 1.0

    def at(self, step: int) -> float:
        return self.initial_val * self.scale / math.sqrt(max(step, self.warmup_steps))


class CosineDecay(Schedule):
    """Half a cosine from initial to end, then end."""

    initial_val: float = _initial
    end_val: float = _end
    total_iters: Steps

    def at(self, step: int) -> float:
        progress = 0.5 * (1 + math.cos(math.pi * min(step, self.total_iters) / self.total_iters))
        return _between(self.initial_val, self.end_val, progress)


class Sequential(Schedule):
    """One schedule after another, each counting from its milestone; without milestones, each lasts its total_iters."""

    schedulers: Annotated[list[Any], Field(min_length=1)]
    milestones: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    last_epoch: Literal[-1] = -1

    @field_validator("schedulers")
    @classmethod
    def _read(cls, value: list[Any]) -> list[Schedule]:
        return [parse_schedule(item) for item in value]

    @field_serializer("schedulers")
    def _write(self, value: list[Schedule]) -> list[dict[str, Any]]:
        return [dump_schedule(item) for item in value]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or tree.get("milestones") is not None or not tree.get("schedulers"):
            return tree
        ends, total = [], 0
        for item in list(tree["schedulers"])[:-1]:
            span = parse_schedule(item).span
            if span is None:
                raise ValueError(f"milestones are needed: {next(iter(item))} does not say after how many steps it ends")
            total += span
            ends.append(total)
        return {**tree, "milestones": ends}

    @model_validator(mode="after")
    def _counts(self) -> "Sequential":
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"{len(self.schedulers)} schedulers need {len(self.schedulers) - 1} milestones, "
                f"got {len(self.milestones)}"
            )
        if sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"milestones must rise, got {self.milestones}")
        return self

    def at(self, step: int) -> float:
        begin, current = 0, self.schedulers[0]
        for milestone, following in zip(self.milestones, self.schedulers[1:], strict=True):
            if step >= milestone:
                begin, current = milestone, following
        return current.at(step - begin)

    @property
    def span(self) -> int | None:
        last = self.schedulers[-1].span
        return None if last is None else (self.milestones[-1] if self.milestones else 0) + last


class PiecewiseConstant(Schedule):
    """vals[i] up to milestones[i]; the last from then on."""

    vals: list[float] = _named("learning_rates", "vals", min_length=1)
    milestones: list[Steps]

    @model_validator(mode="after")
    def _counts(self) -> "PiecewiseConstant":
        if len(self.milestones) != len(self.vals) - 1:
            raise ValueError(
                f"{len(self.vals)} values need {len(self.vals) - 1} milestones, got {len(self.milestones)}"
            )
        return self

    def at(self, step: int) -> float:
        return self.vals[sum(step >= milestone for milestone in self.milestones)]


class MultiStep(Schedule):
    """initial, times gamma at each milestone. Formula: torch MultiStepLR."""

    initial_val: float = _initial
    gamma: float
    milestones: list[Annotated[int, Field(ge=0)]]

    def at(self, step: int) -> float:
        return self.initial_val * self.gamma ** sum(step >= milestone for milestone in self.milestones)


class Step(Schedule):
    """initial, times gamma every step_size steps. Formula: torch StepLR."""

    initial_val: float = _initial
    step_size: Steps
    gamma: float

    def at(self, step: int) -> float:
        return self.initial_val * self.gamma ** (step // self.step_size)


class CosineAnnealing(Schedule):
    """A cosine of period 2 T_max between initial and eta_min. Formula: torch CosineAnnealingLR, closed form."""

    initial_val: float = _initial
    T_max: Steps
    eta_min: float = 0.0

    def at(self, step: int) -> float:
        return self.eta_min + (self.initial_val - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class CosineAnnealingWarmRestarts(Schedule):
    """Cosines of length T_0, T_0 T_mult, T_0 T_mult^2, ... Formula: torch; cerebras_pytorch has T_mult 1 only."""

    initial_val: float = _initial
    T_0: Steps
    T_mult: Steps = 1
    eta_min: float = 0.0

    def at(self, step: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.T_mult
        return self.eta_min + (self.initial_val - self.eta_min) * (1 + math.cos(math.pi * step / length)) / 2


class Lambda(Schedule):
    """The functions that cerebras_pytorch ships, which a YAML file cannot change: initial^2 * step/30 * 0.95^step."""

    initial_val: float = _initial

    def at(self, step: int) -> float:
        return self.initial_val * (step / 30) * self.initial_val * 0.95**step


class Multiplicative(Schedule):
    """initial * coefficient^step. Formula: torch MultiplicativeLR with a constant factor."""

    initial_val: float = _initial
    coefficient: float

    def at(self, step: int) -> float:
        return self.initial_val * self.coefficient**step


class Chained(Schedule):
    """The first schedule times every other's share of its own initial value. Formula: torch ChainedScheduler."""

    schedulers: Annotated[list[Any], Field(min_length=1)]

    _read = field_validator("schedulers")(lambda value: [parse_schedule(item) for item in value])
    _write = field_serializer("schedulers")(lambda value: [dump_schedule(item) for item in value])

    @model_validator(mode="after")
    def _can_divide(self) -> "Chained":
        for item in self.schedulers[1:]:
            if item.first == 0:
                raise ValueError(f"a chained {type(item).__name__} must not start from 0: its share would be 0/0")
        return self

    def at(self, step: int) -> float:
        value = self.schedulers[0].at(step)
        for item in self.schedulers[1:]:
            value *= item.at(step) / item.first
        return value


class Cyclic(Schedule):
    """Triangles between base and max. Formula: torch CyclicLR (Smith, arXiv 1506.01186)."""

    base_val: float = _named("base_lr", "base_val")
    max_val: float = _named("max_lr", "max_val")
    step_size_up: Steps = 2000
    step_size_down: Steps | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0
    scale_mode: Literal["cycle", "iterations"] = "cycle"

    def at(self, step: int) -> float:
        length = self.step_size_up + (self.step_size_down or self.step_size_up)
        cycle = 1 + step // length
        place, rise = step / length - (cycle - 1), self.step_size_up / length
        height = place / rise if place <= rise else (place - 1) / (rise - 1)
        x = cycle if self.scale_mode == "cycle" else step
        scale = {"triangular": 1.0, "triangular2": 2.0 ** (1 - x), "exp_range": self.gamma**x}[self.mode]
        return self.base_val + (self.max_val - self.base_val) * height * scale


class OneCycle(Schedule):
    """Up from initial to max, then down to initial / final_div_factor. Formula: torch OneCycleLR (arXiv 1708.07120)."""

    initial_val: float = _initial
    max_val: float = _named("max_lr", "max_val")
    total_steps: Steps = 1000
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    final_div_factor: Annotated[float, Field(gt=0)] = 1e4
    three_phase: bool = False
    anneal_strategy: Literal["cos", "linear"] = "cos"

    def at(self, step: int) -> float:
        begin = 0.0
        for end, low, high in self._parts():
            if step <= end or end == self.total_steps - 1:
                return self._between(low, high, min(1.0, (step - begin) / (end - begin)))
            begin = end
        raise AssertionError("the last part ends at total_steps - 1")

    def _parts(self) -> Iterator[tuple[float, float, float]]:
        floor, rise = self.initial_val / self.final_div_factor, self.pct_start * self.total_steps
        yield rise - 1, self.initial_val, self.max_val
        if self.three_phase:
            yield 2 * rise - 2, self.max_val, self.initial_val
        yield self.total_steps - 1, self.initial_val if self.three_phase else self.max_val, floor

    def _between(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


class ScalePerParam(Schedule):
    """Its scheduler's value, times each parameter group's own learning-rate scale (muP)."""

    scheduler: Any

    _read = field_validator("scheduler")(lambda value: parse_schedule(value))
    _write = field_serializer("scheduler")(lambda value: dump_schedule(value))

    def at(self, step: int) -> float:
        return self.scheduler.at(step)

    @property
    def span(self) -> int | None:
        return self.scheduler.span


_KINDS: dict[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        *(Constant, Polynomial, Linear, Exponential, InverseExponentialTimeDecay, InverseSquareRootDecay, CosineDecay),
        *(Sequential, PiecewiseConstant, MultiStep, Step, CosineAnnealing, CosineAnnealingWarmRestarts, Lambda),
        *(Multiplicative, Chained, Cyclic, OneCycle, ScalePerParam),
    )
}
_SUFFIXES = {"LR": "lr", "WD": "weight_decay"}


class Driven(BaseModel):
    """A schedule and the optimizer's option that it sets: "lr" or "weight_decay"."""

    model_config = ConfigDict(frozen=True)
    option: Literal["lr", "weight_decay"]
    schedule: Schedule
    SUFFIX: ClassVar[Mapping[str, str]] = _SUFFIXES


def schedule_names() -> list[str]:
    """Every name that a file may use."""
    names = [kind + suffix for suffix in _SUFFIXES for kind in _KINDS if kind not in _UNSUFFIXED]
    return sorted([*names, *_UNSUFFIXED])


_UNSUFFIXED = {"CosineAnnealingWarmRestarts": "CosineAnnealingWarmRestarts", "ChainedScheduler": "Chained"}


def parse_driven(tree: Any) -> Driven:
    """``{"LinearLR": {...}}`` or ``{"LinearWD": {...}}``: the schedule and what it drives.

    Raises:
        ValueError: unknown name or option; pydantic's ValidationError is one.
    """
    name, options = _one_key(tree)
    kind, option = _look_up(name)
    return Driven(option=option, schedule=kind.model_validate(options or {}))


def parse_schedule(tree: Any) -> Schedule:
    """As `parse_driven`, the schedule alone; a schedule is returned as it is."""
    return tree if isinstance(tree, Schedule) else parse_driven(tree).schedule


def dump_schedule(schedule: Schedule, option: str = "lr") -> dict[str, Any]:
    """What `parse_driven` reads back to an equal schedule."""
    name = type(schedule).__name__
    suffix = next(suffix for suffix, driven in _SUFFIXES.items() if driven == option)
    name = name if name in _UNSUFFIXED else name + suffix
    return {name: schedule.model_dump(mode="json", exclude_none=True)}


def _one_key(tree: Any) -> tuple[str, Any]:
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise ValueError(f"a scheduler is one name with its options, such as LinearLR: {{...}}, got {str(tree)[:60]}")
    return next(iter(tree.items()))


def _look_up(name: str) -> tuple[type[Schedule], Literal["lr", "weight_decay"]]:
    # ModelZoo takes names in any case.
    kinds = {kind.lower(): value for kind, value in _KINDS.items()}
    lower = name.lower()
    unsuffixed = {key.lower(): value for key, value in _UNSUFFIXED.items()}
    if lower in unsuffixed:
        return _KINDS[unsuffixed[lower]], "lr"
    stem = lower[:-2]
    if stem in kinds and lower.endswith(("lr", "wd")):
        return kinds[stem], "lr" if lower.endswith("lr") else "weight_decay"
    raise ValueError(f"{name!r} is not a scheduler; known are {', '.join(schedule_names())}")


def curve(schedule: Schedule, steps: Sequence[int]) -> list[float]:
    """The values at `steps`."""
    return [schedule.at(step) for step in steps]
