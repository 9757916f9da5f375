"""The one schema of a training run: what `openwafer fit CONFIG.yaml` accepts, section by section.

Everything is checked before anything is built: unknown keys, types, ranges, and what does not fit together. Values
are frozen. Reading files and naming what is wrong in them is `read_config`'s; this module knows no file and no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from openwafer.base.units import parse_bytes
from openwafer.models.families import FAMILIES
from openwafer.models.interchange.modelzoo_section import ModelSection
from openwafer.train.schedules import Driven, dump_schedule, parse_driven

PRESETS: tuple[str, ...] = tuple(FAMILIES)
"""Published models by name, such as cerebras-gpt-111m-mup or llama-3.1-8b."""

STORE = "store"
"""Where a run's parameter store is, in its folder, unless it is given a place of its own."""

SEQUENCE_LENGTH = 1024
"""Of shards, where the configuration names no other."""

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


def _is_preset(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"{name!r} is no preset; choose one of {', '.join(PRESETS)}")
    return name


Preset = Annotated[str, AfterValidator(_is_preset)]
PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[str | int, AfterValidator(_is_size)]


class Section(BaseModel):
    """A section of the file: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """A member of a family by name, its fields overridden one by one, or every field, or ModelZoo's own keys."""

    preset: Preset | None = None
    modelzoo: ModelSection | None = None
    vocab_size: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_kv_heads: PositiveInt | None = None
    ffn_size: PositiveInt | None = None
    max_positions: PositiveInt | None = None
    dropout: Share | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "ModelConfig":
        needed = ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.modelzoo is not None and len(missing) + (self.preset is None) <= len(needed):
            raise ValueError("modelzoo describes the whole model; leave the other keys out")
        if self.preset is None and self.modelzoo is None and missing:
            raise ValueError(f"without a preset, {', '.join(missing)} must be set; presets are {', '.join(PRESETS)}")
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class SinkTokens(Section):
    """A token that every sequence begins with, so many times, for attention to rest on."""

    token_id: Annotated[int, Field(ge=0)]
    count: PositiveInt


class DataConfig(Section):
    """What `openwafer data prepare` wrote, how it is cut, in which order it comes, and what validation sees.

    Shards: one folder, always shuffled by train.seed, a share of it kept for validation. HDF5 (ModelZoo's forms): one
    folder or several, in their order or shuffled by `shuffle_seed`, validation from folders of its own; without a
    sequence_length that of the samples.
    """

    path: Path | list[Path]
    form: Literal["shards", "hdf5"] = "shards"
    sequence_length: PositiveInt | None = None
    validation: Share = 0.0
    shuffle_seed: Annotated[int, Field(ge=0)] | None = None
    subset: str | None = None
    packed: bool | None = None
    sink_tokens: SinkTokens | None = None
    validation_path: Path | list[Path] | None = None
    validation_sequences: PositiveInt | None = None

    @model_validator(mode="after")
    def _belongs(self) -> "DataConfig":
        only_hdf5 = ("shuffle_seed", "subset", "packed", "sink_tokens", "validation_path", "validation_sequences")
        wrong = [key for key in only_hdf5 if self.form == "shards" and getattr(self, key) is not None]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} belong to form: hdf5; shards have validation, a share of the data")
        if self.form == "shards" and isinstance(self.path, list):
            raise ValueError("shards are one folder; several may be prepared into one")
        if self.form == "hdf5" and self.validation:
            raise ValueError("HDF5 data is not split: name other folders as validation_path")
        return self

    @property
    def folders(self) -> list[Path]:
        """Where the training data is."""
        return self.path if isinstance(self.path, list) else [self.path]

    @property
    def validation_folders(self) -> list[Path]:
        """Where HDF5 data for validation is; may be none."""
        path = self.validation_path
        return path if isinstance(path, list) else [] if path is None else [path]

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate on."""
        return bool(self.validation or self.validation_folders)


class OptimizerConfig(Section):
    """One of torch.optim's (or Lion); options left out take the defaults of `OPTIMIZER_OPTIONS`.

    lr_scales multiplies the learning rate of the parameters whose name matches a pattern; the first that matches counts
    (muP's own scales come from the model); group_scales does so by the names that ModelZoo has for groups, such as
    decoder_attention. tags gives groups of parameters names that `schedulers` may refer to.
    """

    name: Literal["adamw", "adam", "sgd", "adafactor", "lion"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Share, Share] | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Share | None = None
    decay_1d: bool = False
    moments: Literal["fp32", "bf16"] = "fp32"
    lr_scales: dict[str, Annotated[float, Field(gt=0)]] = {}
    group_scales: dict[str, Annotated[float, Field(gt=0)]] = {}
    tags: dict[str, list[str]] = {}

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


class LossConfig(Section):
    """What a step minimises: the mean over tokens, or ModelZoo's sum over tokens times weight over sequences."""

    scaling: Literal["num_tokens", "batch_size"] = "num_tokens"
    weight: Annotated[float, Field(gt=0)] = 1.0


class TrainConfig(Section):
    """How long, how much a step, how exact. A step's size is given in sequences or in tokens.

    A step is cut into micro_batches, or into as few as have at most micro_batch_sequences each.
    """

    steps: PositiveInt
    sequences: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    micro_batches: PositiveInt | None = None
    micro_batch_sequences: PositiveInt | None = None
    loss: LossConfig = LossConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    commit_every: PositiveInt = 1
    validate_every: PositiveInt | None = None
    validation_batches: PositiveInt | None = 4

    @model_validator(mode="after")
    def _one_batch_size(self) -> "TrainConfig":
        if (self.sequences is None) == (self.batch_tokens is None):
            got = "neither" if self.sequences is None else "both"
            raise ValueError(f"exactly one of sequences and batch_tokens sets the size of a step, got {got}")
        if self.micro_batches is not None and self.micro_batch_sequences is not None:
            raise ValueError("micro_batches and micro_batch_sequences cut a step in two ways; set one")
        return self


class LogConfig(Section):
    """What is written beside events.jsonl, which always is."""

    tensorboard: bool = False


class RunConfig(Section):
    """A whole training run; `device` is where it computes: the CPU if left out, "auto" for an accelerator, "cuda:1".

    `schedulers` has ModelZoo's schedules by name, for the learning rate and the weight decay, in place of `schedule`.
    `phases` are parts of a run one after another, each to the step its train.steps says: in a file, what differs from
    the rest of the file; here, whole configurations. The run's own sections are then those of its first phase.
    """

    run: Path
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    schedulers: list[Driven] | None = None
    memory: Size | None = None
    device: str | None = None
    device_memory: Size | None = None
    store: Path | None = None
    log: LogConfig = LogConfig()
    phases: "list[RunConfig]" = []

    @field_validator("schedulers", mode="before")
    @classmethod
    def _read_schedulers(cls, value: Any) -> Any:
        return [parse_driven(item) for item in value] if isinstance(value, list) else value

    @field_serializer("schedulers")
    def _write_schedulers(self, value: list[Driven] | None) -> Any:
        return None if value is None else [dump_schedule(item.schedule, item.option) for item in value]

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        self._check_lengths()
        if self.train.micro_batches is not None and self.sequences % self.train.micro_batches:
            raise ValueError(
                f"train.micro_batches {self.train.micro_batches} does not divide a step's {self.sequences} sequences"
            )
        if self.device_memory is not None and self.device is None:
            raise ValueError("device_memory is the budget of a device: name it, e.g. device=auto")
        if self.train.validate_every is not None and not self.data.validates:
            raise ValueError("train.validate_every needs data.validation, a share of the data such as 0.01")
        self._check_phases()
        return self

    def _check_lengths(self) -> None:
        length, tokens = self.sequence_length, self.train.batch_tokens
        if tokens is not None and tokens % length:
            below, above = tokens // length * length, (tokens // length + 1) * length
            near = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"train.batch_tokens {tokens} is not a multiple of data.sequence_length {length}; nearest: {near}"
            )
        positions = self.model.max_positions
        if positions is not None and length > positions:
            raise ValueError(f"data.sequence_length {length} is over model.max_positions {positions}")

    def _check_phases(self) -> None:
        ends = [phase.train.steps for phase in self.phases]
        if sorted(set(ends)) != ends:
            raise ValueError(f"every phase must end after the one before; their train.steps are {ends}")
        for key in ("run", "store", "device", "memory"):
            if len({str(getattr(phase, key)) for phase in self.phases}) > 1:
                raise ValueError(f"{key} belongs to the whole run and cannot differ between phases")

    @property
    def parts(self) -> "list[RunConfig]":
        """The phases, or the run itself as the only one."""
        return self.phases or [self]

    @property
    def last_step(self) -> int:
        """Steps of the whole run."""
        return self.parts[-1].train.steps

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence, as far as the configuration tells: at most the model's positions."""
        if self.data.sequence_length is not None:
            return self.data.sequence_length
        if self.data.form == "shards":
            return SEQUENCE_LENGTH
        zoo = self.model.modelzoo
        return (zoo.max_position_embeddings if zoo else self.model.max_positions) or SEQUENCE_LENGTH

    @property
    def sequences(self) -> int:
        """Sequences in one step, over all its micro-batches."""
        if self.train.sequences is not None:
            return self.train.sequences
        assert self.train.batch_tokens is not None
        return self.train.batch_tokens // self.sequence_length

    @property
    def micro_batches(self) -> int:
        """Parts that a step is cut into; they differ by at most one sequence."""
        at_most = self.train.micro_batch_sequences
        return self.train.micro_batches or (1 if at_most is None else -(-self.sequences // at_most))

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.sequences * self.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps over which the learning rate falls."""
        return self.schedule.total_steps or self.train.steps

    @property
    def store_dir(self) -> Path:
        """Where the parameter store is."""
        return self.store or self.run / STORE
