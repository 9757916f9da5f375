"""A ModelZoo 2.x trainer file as a tree of our own schema: one pure function, no file, no torch.

What has a meaning here is carried over; what has none is named once, in the notes; what is not built is refused by
name. Several trainers in one file become phases of one run whose step counter goes on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from openwafer.models.interchange.modelzoo_section import model_section
from openwafer.train.modelzoo import meanings
from openwafer.train.modelzoo.trainer_file import Dataloader, Init, Precision, Trainer
from openwafer.train.schedules import dump_schedule, parse_driven

AUTO_MICRO_BATCH_TOKENS = 8192
"""Tokens of a micro-batch where the file leaves its size to the vendor's compiler. Chosen: a layer's activations of so
many tokens are small beside its weights at the sizes that need streaming."""


@dataclass
class Translation:
    """Our tree, and what is to be said about it, each thing once."""

    tree: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class TrainerFileError(ValueError):
    """A key of the file is wrong, or asks for what is not built; `path` is where."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason.rstrip('.')}.")


def is_trainer_file(tree: Any) -> bool:
    """Whether a parsed YAML file has the form of ModelZoo 2.x."""
    if isinstance(tree, list):
        return bool(tree) and all(isinstance(item, Mapping) and "trainer" in item for item in tree)
    return isinstance(tree, Mapping) and "trainer" in tree


def translate(tree: Any) -> Translation:
    """The run that a trainer file describes.

    Raises:
        TrainerFileError: naming the key.
    """
    result = Translation({})
    phases = []
    for path, part in _trainers(tree):
        begin = phases[-1]["train"]["steps"] if phases else 0
        phases.append(_phase(path, part, begin, result))
    result.tree = phases[0] if len(phases) == 1 else {**phases[0], "phases": phases}
    return result


def _trainers(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        extra = sorted(set(tree) - {"trainer"})
        if extra:
            raise TrainerFileError(extra[0], "beside trainer there is nothing else in a trainer file")
        tree = tree["trainer"]
    items = tree if isinstance(tree, list) else [tree]
    for number, item in enumerate(items):
        path = f"trainer.{number}" if isinstance(tree, list) else "trainer"
        if isinstance(item, Mapping) and set(item) == {"trainer"}:
            item = item["trainer"]
        yield path, item


def _phase(path: str, tree: Any, begin: int, result: Translation) -> dict[str, Any]:
    trainer = _read(Trainer, tree, path)
    if trainer.fit is None:
        raise TrainerFileError(path, "has no fit section, so there is nothing to train on")
    init = trainer.init
    steps = _steps(init, begin, f"{path}.init.loop")
    model, notes = _model(init, path)
    for text in notes:
        result.note(text)
    train_data = _loader(trainer.fit.train_dataloader, f"{path}.fit.train_dataloader", result)
    flags = _flags(init, path, result)
    length = train_data.max_sequence_length or model["max_position_embeddings"]
    phase = {
        "run": init.model_dir,
        "model": {"modelzoo": model},
        "data": _data(train_data),
        "optimizer": _optimizer(init, path),
        "train": {
            "steps": steps,
            **_batch(init, train_data, flags.get("train"), length, result),
            "seed": init.seed or 0,
            **_precision(init.precision or Precision(enabled=False), path, result),
            "loss": {"scaling": model["loss_scaling"], "weight": model["loss_weight"]},
        },
        **_schedulers(init, path),
        **_device(init, path, result),
        **_loggers(init, path, result),
    }
    _validation(trainer, path, steps - begin, phase, result)
    _rest(trainer, path, begin, result)
    return phase


def _read(kind: type[Any], tree: Any, path: str) -> Any:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise _named(error, path) from error


def _named(error: ValidationError, path: str) -> TrainerFileError:
    fault = error.errors()[0]
    where = ".".join([path, *(str(part) for part in fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return TrainerFileError(where, f"unknown key, set to {str(fault['input'])[:40]!r}")
    if fault["type"] == "value_error":
        return TrainerFileError(where, str(fault.get("ctx", {}).get("error", fault["msg"])))
    return TrainerFileError(where, f"{fault['msg'].removeprefix('Input ')}, got {str(fault['input'])[:60]!r}")


def _model(init: Init, path: str) -> tuple[dict[str, Any], list[str]]:
    path = f"{path}.init.model"
    try:
        return model_section(init.model)
    except ValidationError as error:
        raise _named(error, path) from error
    except ValueError as error:
        raise TrainerFileError(path, str(error)) from error


def _steps(init: Init, begin: int, path: str) -> int:
    loop = init.loop
    if loop.num_steps is not None:  # takes precedence over max_steps, as documented
        return begin + loop.num_steps
    if loop.max_steps is not None:
        if loop.max_steps <= begin:
            raise TrainerFileError(f"{path}.max_steps", f"is {loop.max_steps}, and the phase begins at step {begin}")
        return loop.max_steps
    if loop.num_epochs is not None and loop.steps_per_epoch is not None:
        return begin + loop.num_epochs * loop.steps_per_epoch
    if loop.num_epochs is not None:
        raise TrainerFileError(f"{path}.num_epochs", "needs steps_per_epoch beside it, or give max_steps")
    raise TrainerFileError(path, "says nowhere how long to train: give max_steps or num_steps")


def _loader(tree: Mapping[str, Any], path: str, result: Translation) -> Dataloader:
    name = tree.get("data_processor")
    if name not in ("GptHDF5DataProcessor", "GptHDF5MapDataProcessor"):
        raise TrainerFileError(
            f"{path}.data_processor",
            f"{name!r} is not built; there are GptHDF5MapDataProcessor and GptHDF5DataProcessor",
        )
    loader = _read(Dataloader, tree, path)
    for key in ("mixture", "num_samples", "dataset_map_fn"):
        if getattr(loader, key) is not None:
            raise TrainerFileError(f"{path}.{key}", "is not built here; leave it out")
    if loader.data_dir is None:
        raise TrainerFileError(f"{path}.data_dir", "is missing; it must be set")
    for transform in loader.data_transforms or ():
        if transform.get("name") != "add_sink_tokens":
            raise TrainerFileError(f"{path}.data_transforms", f"{transform.get('name')!r} is not built here")
    idle = ("num_workers", "prefetch_factor", "persistent_workers", "use_worker_cache")
    if any(key in tree for key in idle):
        result.note(
            "dataloader num_workers, prefetch_factor, persistent_workers, use_worker_cache: batches are read by "
            "the training process"
        )
    if loader.shuffle:
        result.note("dataloader shuffle: by our own permutation of shuffle_seed, not the vendor's order")
    return loader


def _data(loader: Dataloader) -> dict[str, Any]:
    data: dict[str, Any] = {"path": loader.data_dir, "form": "hdf5", "sequence_length": loader.max_sequence_length}
    if loader.shuffle:
        data["shuffle_seed"] = loader.shuffle_seed or 0
    data |= {"subset": loader.data_subset, "packed": loader.use_vsl}
    if loader.data_transforms:
        data["sink_tokens"] = _sinks(loader.data_transforms[0])
    return data


def _sinks(transform: Mapping[str, Any]) -> dict[str, Any]:
    return {"token_id": transform.get("sink_token_id", 0), "count": transform.get("num_sink_tokens", 0)}


def _batch(init: Init, loader: Dataloader, micro_batch: Any, length: int, result: Translation) -> dict[str, Any]:
    sequences = loader.batch_size
    accumulated = init.loop.grad_accum_steps
    if accumulated > 1 and _backend(init) == "CSX":
        result.note("loop.grad_accum_steps: has no effect with the CSX backend, as documented")
    elif accumulated > 1:
        sequences *= accumulated
    num_csx = (init.backend.get("cluster_config") or {}).get("num_csx", 1)
    local = math.ceil(loader.batch_size / num_csx)
    if isinstance(micro_batch, int):
        most = min(micro_batch, local)
    else:
        most = min(local, max(1, AUTO_MICRO_BATCH_TOKENS // length))
        result.note(
            f"micro_batch_size: left to the program: as many sequences as {AUTO_MICRO_BATCH_TOKENS:,} tokens hold; "
            "train.micro_batch_sequences=N sets it"
        )
    return {"sequences": sequences, "micro_batch_sequences": most}


def _flags(init: Init, path: str, result: Translation) -> dict[str, Any]:
    """The micro-batch size for training and validation, from whichever callback sets flags."""
    found: dict[str, Any] = {}
    others: list[str] = []
    for callback in init.callbacks:
        for name in set(callback) & set(meanings.FLAG_CALLBACKS):
            flags = _flat(callback[name] or {})
            others += [key for key in flags if key != meanings.MICRO_BATCH_FLAG]
            if meanings.MICRO_BATCH_FLAG in flags:
                value = flags[meanings.MICRO_BATCH_FLAG]
                _check_micro_batch(value, f"{path}.init.callbacks.{name}.{meanings.MICRO_BATCH_FLAG}")
                scopes = {"ScopedTrainFlags": ["train"], "ScopedValidateFlags": ["validate"]}
                found |= dict.fromkeys(scopes.get(name, ["train", "validate"]), value)
    if others:
        result.note(f"flags {', '.join(sorted(set(others)))}: concern the wafer's cluster")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested flags by dotted name; the value of the micro-batch flag may itself be a mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != meanings.MICRO_BATCH_FLAG:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _check_micro_batch(value: Any, path: str) -> None:
    explored = isinstance(value, Mapping) and set(value) == {"explore"}
    if value in ("auto", "explore", None) or explored:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TrainerFileError(path, f"must be a positive whole number, auto or explore, got {value!r}")


def _precision(precision: Precision, path: str, result: Translation) -> dict[str, Any]:
    path = f"{path}.init.precision"
    if precision.max_gradient_value is not None:
        raise TrainerFileError(f"{path}.max_gradient_value", "clipping by value is not built; use max_gradient_norm")
    clip = {"clip_norm": precision.max_gradient_norm}
    if not precision.enabled:
        return {"precision": "fp32", **clip}
    if precision.fp16_type == "float16":
        raise TrainerFileError(f"{path}.fp16_type", "float16 is not built; use bfloat16, or enabled: false for fp32")
    if precision.fp16_type == "cbfloat16":
        result.note("precision.fp16_type cbfloat16: computed in bf16")
    if precision.loss_scaling_factor != 1.0:
        result.note("precision.loss_scaling_factor: bf16 has the range of fp32, so the loss is not scaled")
    if precision.precision_opt_level is not None:
        result.note("precision.precision_opt_level: concerns the wafer; sums and softmax are fp32 here")
    return {"precision": "bf16", **clip}


def _optimizer(init: Init, path: str) -> dict[str, Any]:
    path = f"{path}.init.optimizer"
    if not init.optimizer or len(init.optimizer) != 1:
        raise TrainerFileError(path, "must be one optimizer with its options, such as AdamW: {betas: [0.9, 0.95]}")
    name, given = next(iter(init.optimizer.items()))
    options = dict(given or {})
    if name.lower() not in meanings.OPTIMIZERS:
        raise TrainerFileError(path, f"{name} is not built; there are AdamW, Adam, SGD, Lion")
    ours, taken, defaults = meanings.OPTIMIZERS[name.lower()]
    scales = options.pop("adjust_learning_rate", None) or {}
    tree: dict[str, Any] = {"name": ours, **defaults}
    rate = options.pop("learning_rate", options.pop("lr", None))
    if rate is not None:
        tree["lr"] = rate
    for groups in _listed(options.pop("params", None)):
        tree.setdefault("tags", {})[groups["tag"]] = _listed(groups["params"])
    for option, value in options.items():
        if option in taken:
            tree[option] = value
        elif meanings.OPTIMIZER_OFF.get(option, value) != value or option not in meanings.OPTIMIZER_OFF:
            raise TrainerFileError(f"{path}.{name}.{option}", f"{value!r} is not built; leave it out")
    return tree | ({"group_scales": scales} if scales else {})


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _schedulers(init: Init, path: str) -> dict[str, Any]:
    """A list may hold one schedule for the learning rate and one for the weight decay, or parts that follow another."""
    if init.schedulers is None:
        return {"schedule": {"decay": "constant"}}
    schedulers = []
    for number, item in enumerate(_listed(init.schedulers)):
        try:
            driven = parse_driven(item)
        except ValidationError as error:
            raise _named(error, f"{path}.init.schedulers.{number}.{next(iter(item))}") from error
        except ValueError as error:
            raise TrainerFileError(f"{path}.init.schedulers.{number}", str(error)) from error
        schedulers.append(dump_schedule(driven.schedule, driven.option))
    return {"schedulers": schedulers}


def _backend(init: Init) -> str:
    return str(init.device or init.backend.get("backend_type") or "CSX").upper()


def _device(init: Init, path: str, result: Translation) -> dict[str, Any]:
    kind = _backend(init)
    if kind not in ("CSX", "CPU", "GPU"):
        raise TrainerFileError(f"{path}.init.backend.backend_type", f"{kind!r} is none of CSX, CPU, GPU")
    if kind == "CSX":
        result.note("backend CSX: computed here, on the CPU; device=auto takes this machine's accelerator")
    cluster = {key for key in init.backend.get("cluster_config") or {} if key != "num_csx"}
    others = sorted(
        set(init.backend) - {"backend_type", "cluster_config"} | {f"cluster_config.{key}" for key in cluster}
    )
    if others:
        result.note(f"backend {', '.join(others)}: concern the vendor's cluster")
    return {"device": "auto"} if kind == "GPU" else {}


def _loggers(init: Init, path: str, result: Translation) -> dict[str, Any]:
    log = {}
    for item in init.loggers:
        for name in item:
            if name == "TensorBoardLogger":
                log = {"log": {"tensorboard": True}}
            else:
                _say(name, f"{path}.init.loggers", result)
    return log


def _say(name: str, path: str, result: Translation) -> None:
    if name in meanings.ALWAYS:
        return
    if name in meanings.NO_MEANING:
        result.note(f"{name}: {meanings.NO_MEANING[name]}")
    elif name in meanings.LACKING:
        raise TrainerFileError(f"{path}.{name}", f"{meanings.LACKING[name]} is not built here; leave it out")
    else:
        raise TrainerFileError(f"{path}.{name}", "is not known here; leave it out")


def _validation(trainer: Trainer, path: str, steps: int, phase: dict[str, Any], result: Translation) -> None:
    assert trainer.fit is not None
    loop = trainer.init.loop
    loaders = _listed(trainer.fit.val_dataloader)
    if not loaders or not loop.eval_frequency:
        return
    path = f"{path}.fit.val_dataloader"
    if len(loaders) > 1:
        raise TrainerFileError(path, "several are not built; name one, whose data_dir may be a list")
    loader = _loader(loaders[0], path, result)
    phase["data"]["validation_path"] = loader.data_dir
    phase["data"]["validation_sequences"] = loader.batch_size
    phase["train"]["validation_batches"] = loop.eval_steps
    every = loop.eval_frequency
    # A float is a share of the steps, as documented.
    phase["train"]["validate_every"] = math.ceil(every * steps) if isinstance(every, float) else every


def _rest(trainer: Trainer, path: str, begin: int, result: Translation) -> None:
    init = trainer.init
    for callback in init.callbacks:
        for name in callback:
            if name not in meanings.FLAG_CALLBACKS:
                _say(name, f"{path}.init.callbacks", result)
    if init.sparsity is not None:
        raise TrainerFileError(f"{path}.init.sparsity", "weight sparsity from a trainer file is not built here yet")
    if init.checkpoint is not None:
        result.note("checkpoint: every step is one, in the run's store")
    if init.logging is not None:
        result.note("logging: events.jsonl has every step, the terminal one line every few seconds")
    if init.autorestart is not None:
        result.note("autorestart: `openwafer resume` goes on from the last step")
    assert trainer.fit is not None
    if trainer.fit.ckpt_path is not None:
        if not begin:
            raise TrainerFileError(f"{path}.fit.ckpt_path", "starting from a checkpoint file is not built here yet")
        result.note("fit.ckpt_path of a later phase: it goes on from the run's own state")
    if trainer.validate_ is not None or trainer.validate_all is not None:
        result.note("validate, validate_all: other commands of the vendor's; fit validates as its val_dataloader says")
