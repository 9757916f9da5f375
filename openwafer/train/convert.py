"""`openwafer convert SOURCE OUT`: a run, a folder or a file of one format becomes one of another.

What SOURCE is follows from what is in it. Nothing of the model is held but the parameter at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from openwafer.base.errors import CheckpointError, ConfigError
from openwafer.models import num_parameters
from openwafer.models.interchange import (
    MDL_SIGNATURE,
    CardFacts,
    Checkpoint,
    read_folder,
    read_mdl,
    write_folder,
    write_gguf,
    write_mdl,
    write_native,
)
from openwafer.train.config import RunConfig
from openwafer.train.folder import RunFolder
from openwafer.train.loop import open_job

FORMATS = ("hf", "openwafer", "mdl", "gguf")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a checkpoint is written.

    Attributes:
        format: one of FORMATS.
        kind: Hugging Face's model_type; None for the one that fits.
        dtype: one of DTYPES; None as it is.
        facts: for the model card.
    """

    format: str = "hf"
    kind: str | None = None
    dtype: str | None = None
    facts: CardFacts | None = None


def convert(
    source: Path, out: Path, options: Options, on_progress: Callable[[int, int], object] = lambda done, total: None
) -> Checkpoint:
    """Write what is in `source` as `out`, whole or not at all; returns what was read.

    Args:
        on_progress: called with the elements written so far and those of the model.

    Raises:
        CheckpointError: the source is damaged, unsafe or of an unknown kind.
        ConfigError: out exists, or the format cannot express the model.
    """
    if options.format not in FORMATS:
        raise ConfigError(f"the format is {options.format!r}; it must be one of {', '.join(FORMATS)}")
    checkpoint = _watched(open_checkpoint(source), on_progress)
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    if options.format == "openwafer":
        write_native(checkpoint, out, dtype=dtype)
    elif options.format == "mdl":
        write_mdl(checkpoint, out, dtype=dtype)
    elif options.format == "gguf":
        write_gguf(checkpoint, out, dtype=dtype)
    else:
        write_folder(checkpoint, out, kind=options.kind, dtype=dtype, facts=options.facts)
    return checkpoint


def open_checkpoint(source: Path) -> Checkpoint:
    """The checkpoint at a path: a run, a folder of ours or of Hugging Face, or a Cerebras file.

    Raises:
        CheckpointError: there is none, or it is damaged, unsafe or of an unknown kind.
    """
    if not source.exists():
        raise CheckpointError(f"{source} does not exist")
    if RunFolder(source).config_file.is_file():
        return _run(RunFolder(source))
    if source.is_dir():
        return read_folder(source)
    with source.open("rb") as file:
        if file.read(len(MDL_SIGNATURE)) == MDL_SIGNATURE:
            return read_mdl(source)
    raise CheckpointError(
        f"{source} is a file of an unknown kind; give a run, a folder with config.json or a Cerebras .mdl file"
    )


def load_parameters(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's parameters into a decoder of its shape, also one that is made under `init`.

    Raises:
        CheckpointError: the shapes differ.
    """
    named = dict(model.named_parameters())
    for name, tensor in checkpoint.tensors():
        if name not in named or named[name].shape != tensor.shape:
            have = list(named[name].shape) if name in named else "no such parameter"
            raise CheckpointError(f"{checkpoint.source} has {name} of shape {list(tensor.shape)}; the model has {have}")
        with torch.no_grad():
            named.pop(name).copy_(tensor)
    if named:
        raise CheckpointError(
            f"{checkpoint.source} lacks {len(named)} of the model's parameters, {next(iter(named))} first"
        )


def _run(folder: RunFolder) -> Checkpoint:
    """The model of a run as last committed, its weights streamed."""
    config: RunConfig = folder.load([])
    config = config.model_copy(update={"device": None, "device_memory": None})
    job = open_job(config)
    decoder = job.model.config
    job.abandon()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        job = open_job(config)
        try:
            yield from job.named_parameters()
        finally:
            job.abandon()

    files = {"tokenizer.json": folder.tokenizer_file} if folder.tokenizer_file.is_file() else {}
    return Checkpoint(decoder, tensors, str(folder.path), files)  # pyright: ignore[reportArgumentType]


def _watched(checkpoint: Checkpoint, on_progress: Callable[[int, int], object]) -> Checkpoint:
    total = num_parameters(checkpoint.config)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        done = 0
        for name, tensor in checkpoint.tensors():
            yield name, tensor
            done += tensor.numel()
            on_progress(done, total)

    return dataclasses.replace(checkpoint, tensors=tensors)
