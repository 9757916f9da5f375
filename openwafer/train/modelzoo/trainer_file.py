"""The sections of a ModelZoo 2.x trainer file, as far as their form goes; what they mean here is `translate`'s.

Source: ModelZoo 2.10, documentation of the Trainer and its callbacks (training-docs.cerebras.ai, rel-2.10).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1)]


class Keys(BaseModel):
    """A section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Precision(Keys):
    """`init.precision`."""

    enabled: bool = True
    fp16_type: Literal["bfloat16", "cbfloat16", "float16"] = "bfloat16"
    precision_opt_level: int | None = None
    loss_scaling_factor: float | Literal["dynamic"] = 1.0
    initial_loss_scale: float | None = None
    steps_per_increase: int = 2000
    min_loss_scale: float | None = None
    max_loss_scale: float | None = None
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    max_gradient_value: Annotated[float, Field(gt=0)] | None = None
    log_loss_scale: bool | None = None


class Loop(Keys):
    """`init.loop`: num_steps count from where the phase begins, max_steps from the start of the run."""

    num_steps: Count | None = None
    max_steps: Count | None = None
    num_epochs: Count | None = None
    steps_per_epoch: Count | None = None
    eval_frequency: Annotated[int | float, Field(ge=0)] | None = 1.0
    eval_steps: Count | None = None
    grad_accum_steps: Count = 1


class Checkpoint(Keys):
    """`init.checkpoint`."""

    steps: Annotated[int, Field(ge=0)] | None = None
    autoload_last_checkpoint: bool = True
    disable_strict_checkpoint_loading: bool = False
    save_initial_checkpoint: bool = False
    checkpoint_root: str | None = None
    checkpoint_name: str = "checkpoint_{step}.mdl"
    strict_version: bool = True


class Logging(Keys):
    """`init.logging`."""

    log_steps: Annotated[int, Field(ge=0)] | None = None
    log_level: Any = "INFO"
    wsc_log_level: Any = None
    enable_act_frequency: bool = False


class Dataloader(Keys):
    """A dataloader of one of ModelZoo's two GPT processors for HDF5 data."""

    data_processor: Literal["GptHDF5DataProcessor", "GptHDF5MapDataProcessor"]
    data_dir: str | list[str] | None = None
    batch_size: Count
    shuffle: bool = False
    shuffle_seed: Annotated[int, Field(ge=0)] | None = None
    max_sequence_length: Count | None = None
    data_subset: str | None = None
    use_vsl: bool = False
    mixture: list[dict[str, Any]] | None = None
    data_transforms: list[dict[str, Any]] | None = None
    num_samples: Count | None = None
    drop_last: bool = True
    pad_last: bool = False
    sort_files: bool = True
    dataset_map_fn: Any = None
    # how the vendor's processes read; no meaning here
    num_workers: int = 0
    prefetch_factor: int | None = None
    persistent_workers: bool = True
    use_worker_cache: bool = False
    use_multiple_workers: Any = None
    vocab_size: Any = None
    repeat: Any = None


class Fit(Keys):
    """`fit`."""

    train_dataloader: dict[str, Any]
    val_dataloader: dict[str, Any] | list[dict[str, Any]] | None = None
    ckpt_path: str | None = None


class Init(Keys):
    """`init`."""

    model: dict[str, Any]
    backend: dict[str, Any] = {}
    device: str | None = None
    model_dir: str = "./model_dir"
    optimizer: dict[str, Any] | None = None
    schedulers: list[dict[str, Any]] | dict[str, Any] | None = None
    precision: Precision | None = None
    sparsity: dict[str, Any] | list[dict[str, Any]] | None = None
    loop: Loop = Loop()
    checkpoint: Checkpoint | None = None
    logging: Logging | None = None
    callbacks: list[dict[str, Any]] = []
    loggers: list[dict[str, Any]] = []
    seed: Annotated[int, Field(ge=0)] | None = None
    autorestart: dict[str, Any] | None = None

    @field_validator("callbacks", "loggers", mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        """`- ComputeNorm` and `- ComputeNorm:` are `- ComputeNorm: {}`."""
        if not isinstance(value, list):
            return [] if value is None else value
        return [{item: {}} if isinstance(item, str) else item for item in value]


class Trainer(Keys):
    """One phase: `trainer`."""

    init: Init
    fit: Fit | None = None
    validate_: Any = Field(default=None, alias="validate")
    validate_all: Any = None
