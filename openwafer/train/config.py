"""The one schema of a training run: what `openwafer fit CONFIG.yaml` accepts, section by section.

Everything is checked before anything is built: unknown keys, types, ranges, and what does not fit together. Values
are frozen. Reading files and naming what is wrong in them is `read_config`'s; this module knows no file and no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from openwafer.base.units import parse_bytes

Preset = Literal[
    "cerebras-gpt-111m",
    "cerebras-gpt-256m",
    "cerebras-gpt-590m",
    "cerebras-gpt-1.3b",
    "cerebras-gpt-2.7b",
    "cerebras-gpt-6.7b",
    "cerebras-gpt-13b",
]
PRESETS: tuple[str, ...] = get_args(Preset)

STORE = "store"
"""Where a run's parameter store is, in its folder, unless it is given a place of its own."""

# Options of each optimizer with their defaults, those of torch.optim except where a language model wants another.
OPTIMIZER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "sgd": {"momentum": 0.9, "weight_decay": 0.0},
    "adafactor": {"weight_decay": 0.0},
    "lion": {"betas": (0.9, 0.99), "weight_decay": 0.1},
}


def _is_size(size: str | int) -> str | int:
    parse_bytes(size)
    return size


PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[str | int, AfterValidator(_is_size)]


class Section(BaseModel):
    """A section of the file: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """A member of a family by name, its fields overridden one by one, or every field."""

    preset: Preset | None = None
    vocab_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    ffn_size: PositiveInt | None = None
    max_positions: PositiveInt | None = None
    dropout: Share | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "ModelConfig":
        needed = ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.preset is None and missing:
            raise ValueError(f"without a preset, {', '.join(missing)} must be set; presets are {', '.join(PRESETS)}")
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class DataConfig(Section):
    """Token shards that `openwafer data prepare` wrote, how they are cut, and the share kept for validation."""

    path: Path
    sequence_length: PositiveInt = 1024
    validation: Share = 0.0


class OptimizerConfig(Section):
    """One of torch.optim's (or Lion); options left out take the defaults of `OPTIMIZER_OPTIONS`."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "lion"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Share, Share] | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Share | None = None
    decay_1d: bool = False
    moments: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _options_belong(self) -> "OptimizerConfig":
        allowed = OPTIMIZER_OPTIONS[self.name]
        for option in ("betas", "eps", "weight_decay", "momentum"):
            if getattr(self, option) is not None and option not in allowed:
                raise ValueError(f"{self.name} has no {option}; it has lr, {', '.join(allowed)}")
        return self

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the optimizer's constructor: lr and what belongs to it, defaults filled in."""
        chosen = {name: getattr(self, name) for name in OPTIMIZER_OPTIONS[self.name]}
        defaults = OPTIMIZER_OPTIONS[self.name]
        return {"lr": self.lr, **{name: defaults[name] if value is None else value for name, value in chosen.items()}}


class ScheduleConfig(Section):
    """Learning rate over steps: linear warm-up, then a decay from lr to ``end_ratio * lr`` at ``total_steps``."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["linear", "cosine", "constant"] = "cosine"
    end_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    total_steps: PositiveInt | None = None


class TrainConfig(Section):
    """How long, how much a step, how exact. A step's size is given in sequences or in tokens."""

    steps: PositiveInt
    sequences: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    micro_batches: PositiveInt = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    commit_every: PositiveInt = 1
    validate_every: PositiveInt | None = None
    validation_batches: PositiveInt = 4

    @model_validator(mode="after")
    def _one_batch_size(self) -> "TrainConfig":
        if (self.sequences is None) == (self.batch_tokens is None):
            got = "neither" if self.sequences is None else "both"
            raise ValueError(f"exactly one of sequences and batch_tokens sets the size of a step, got {got}")
        return self


class LogConfig(Section):
    """What is written beside events.jsonl, which always is."""

    tensorboard: bool = False


class RunConfig(Section):
    """A whole training run; `device` is where it computes: the CPU if left out, "auto" for an accelerator, "cuda:1"."""

    run: Path
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    memory: Size | None = None
    device: str | None = None
    device_memory: Size | None = None
    store: Path | None = None
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        length = self.data.sequence_length
        tokens = self.train.batch_tokens
        if tokens is not None and tokens % length:
            below, above = tokens // length * length, (tokens // length + 1) * length
            near = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"train.batch_tokens {tokens} is not a multiple of data.sequence_length {length}; nearest: {near}"
            )
        if self.sequences % self.train.micro_batches:
            raise ValueError(
                f"train.micro_batches {self.train.micro_batches} does not divide a step's {self.sequences} sequences"
            )
        positions = self.model.max_positions
        if positions is not None and length > positions:
            raise ValueError(f"data.sequence_length {length} is over model.max_positions {positions}")
        if self.device_memory is not None and self.device is None:
            raise ValueError("device_memory is the budget of a device: name it, e.g. device=auto")
        if self.train.validate_every is not None and not self.data.validation:
            raise ValueError("train.validate_every needs data.validation, a share of the data such as 0.01")
        return self

    @property
    def sequences(self) -> int:
        """Sequences in one step, over all its micro-batches."""
        if self.train.sequences is not None:
            return self.train.sequences
        assert self.train.batch_tokens is not None
        return self.train.batch_tokens // self.data.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.sequences * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps over which the learning rate falls."""
        return self.schedule.total_steps or self.train.steps

    @property
    def store_dir(self) -> Path:
        """Where the parameter store is."""
        return self.store or self.run / STORE
