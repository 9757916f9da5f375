"""Folders as Hugging Face lays them out: config.json, safetensors with an index, tokenizer, generation config, card.

Pickles (`pytorch_model.bin` and the like) are refused, never opened. Names in an index are names in the folder: a path
is refused. Tensors are read one at a time, and written as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwafer.base.errors import CheckpointError
from openwafer.models.alibi import alibi_slopes
from openwafer.models.config import Alibi, DecoderConfig
from openwafer.models.interchange.card import CardFacts, model_card
from openwafer.models.interchange.checkpoint import (
    Checkpoint,
    Rule,
    check_size,
    parameter_shapes,
    read_by,
    written,
)
from openwafer.models.interchange.fold import folded
from openwafer.models.interchange.hf_config import from_hugging_face, to_hugging_face
from openwafer.models.interchange.native import CONFIG_FILE, config_from_value, config_to_json
from openwafer.models.interchange.output import new_folder
from openwafer.models.interchange.rules import TRUNK, gpt2_rules, llama_rules
from openwafer.models.interchange.safetensors_file import SafetensorsFile, SafetensorsWriter, parse_json

SHARD_BYTES = 5 << 30
"""As in transformers, where it was 5 GB for years."""
JSON_BYTES_MOST = 100_000_000
FILE_BYTES_MOST = 500_000_000

TRAVELS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
    "LICENSE",
)
"""Files that travel along as they are."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.npz")
_DERIVED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Endings of tensors that older checkpoints hold and that follow from the configuration."""
_SLOPES = f"{TRUNK}relative_pe.slopes"


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, ours or Hugging Face's.

    Raises:
        CheckpointError: there is none, or it is damaged, unsafe or of an unknown kind.
    """
    if (folder / CONFIG_FILE).is_file():
        kind, notes = CONFIG_FILE, {}
        config = config_from_value(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    elif (folder / "config.json").is_file():
        value = read_json(folder / "config.json")
        config, notes = from_hugging_face(value, str(folder / "config.json"))
        kind = value["model_type"]
    else:
        raise CheckpointError(f"{folder} has neither config.json (Hugging Face) nor {CONFIG_FILE} (ours)")
    with _opened(folder) as shards:
        elements = sum(_elements(file, name) for name, file in shards.items())
        check_size(config, len(shards), elements, str(folder))
        rules = list(_rules(config, kind))
        _check_names(folder, shards, rules)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        with _opened(folder) as shards:
            yield from _read(folder, shards, config, rules)

    files = {name: folder / name for name in TRAVELS if (folder / name).is_file()}
    files = {name: path for name, path in files.items() if path.stat().st_size <= FILE_BYTES_MOST}
    return Checkpoint(config, tensors, str(folder), files, notes)


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    facts: CardFacts | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a new Hugging Face folder, whole or not at all.

    Args:
        kind: model_type; None for the one that fits. "gpt2" for a muP model folds its factors into the weights.
        dtype: of the parameters; None as they are.
        facts: for the card; None where the source brings one.

    Raises:
        ConfigError: the folder exists, or the kind cannot express the model.
        CheckpointError: the source is damaged, or the file system does not take it.
    """
    if kind == "gpt2" and checkpoint.config.mup is not None:
        checkpoint = folded(checkpoint)
    config = checkpoint.config
    value = to_hugging_face(config, kind, checkpoint.notes)
    rules = list(_rules(config, value["model_type"]))
    tensors = written(rules, checkpoint.tensors())
    if isinstance(config.positions, Alibi):
        tensors = _with_slopes(tensors, config)
    with new_folder(folder) as partial:
        dtypes = _write_tensors(tensors, partial, sum(len(rule.theirs) for rule in rules) + 1, dtype, shard_bytes)
        value["torch_dtype"] = str(next(iter(dtypes), torch.float32)).removeprefix("torch.")
        _write_json(partial / "config.json", value)
        _write_files(checkpoint, partial, facts or CardFacts(name=folder.name))


def write_native(checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a new folder of ours (see `native.py`), whole or not at all. Raises as `write_folder`."""
    with new_folder(folder) as partial:
        _write_tensors(checkpoint.tensors(), partial, len(parameter_shapes(checkpoint.config)), dtype, SHARD_BYTES)
        (partial / CONFIG_FILE).write_text(config_to_json(checkpoint.config))
        for name, content in checkpoint.files.items():
            _copy(content, partial / name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of reasonable size."""
    try:
        size = path.stat().st_size
        if size > JSON_BYTES_MOST:
            raise CheckpointError(f"{path} has {size} bytes; a JSON file of a checkpoint has at most {JSON_BYTES_MOST}")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


# --- reading -------------------------------------------------------------------------------------------------------

_Shards = Mapping[str, SafetensorsFile]


@contextmanager
def _opened(folder: Path) -> Iterator[_Shards]:
    """The file of every tensor, by the tensor's name."""
    with ExitStack() as stack:
        files: dict[str, SafetensorsFile] = {}

        def opened(name: str) -> SafetensorsFile:
            if name not in files:
                files[name] = SafetensorsFile(folder / name)
                stack.callback(files[name].close)
            return files[name]

        index = folder / "model.safetensors.index.json"
        if index.is_file():
            yield {tensor: _holding(opened(name), tensor, index) for tensor, name in _weight_map(index).items()}
        elif (folder / "model.safetensors").is_file():
            whole = opened("model.safetensors")
            yield dict.fromkeys(whole.places, whole)
        else:
            raise _no_weights(folder)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map")
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name and "\0" not in name
        if not plain or not name.endswith(".safetensors") or name.startswith("."):
            raise CheckpointError(
                f"{index} says that tensor {tensor!r} is in {name!r}; only the name of a .safetensors file in the same "
                "folder is followed"
            )
    return weight_map


def _holding(file: SafetensorsFile, tensor: str, index: Path) -> SafetensorsFile:
    if tensor not in file.places:
        raise CheckpointError(f"{index} says that tensor {tensor!r} is in {file.path.name}; it is not")
    return file


def _no_weights(folder: Path) -> CheckpointError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is opened and is not read "
            "here. Ask its author for safetensors, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    return CheckpointError(f"{folder} has no model.safetensors and no model.safetensors.index.json")


def _rules(config: DecoderConfig, kind: str) -> Iterator[Rule]:
    if kind == CONFIG_FILE:
        return (Rule((name,), (name,)) for name in parameter_shapes(config))
    return gpt2_rules(config) if kind in ("gpt2", "btlm", "jais") else llama_rules(config)


def _check_names(folder: Path, shards: _Shards, rules: Iterable[Rule]) -> None:
    wanted = {name for rule in rules for name in rule.theirs}
    prefix = _prefix(shards)
    missing = sorted(name for name in wanted if prefix(name) not in shards)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(wanted)} tensors, {missing[0]} for instance: it is not whole, or "
            "its config.json belongs to another model"
        )
    allowed = {prefix(name) for name in wanted} | {prefix("lm_head.weight"), prefix(_SLOPES)}
    unknown = sorted(name for name in shards if name not in allowed and not name.endswith(_DERIVED))
    if unknown:
        raise CheckpointError(
            f"{folder} has {len(unknown)} tensors that its config.json does not account for, {unknown[0]} for instance"
        )


def _elements(file: SafetensorsFile, name: str) -> int:
    place = file.places[name]
    return (place.end - place.begin) // place.dtype.itemsize


def _prefix(shards: _Shards):
    """How a name is spelled here: GPT-2 checkpoints come with and without the prefix of the trunk."""
    bare = "wte.weight" in shards
    return lambda name: name.removeprefix(TRUNK) if bare else name


def _read(folder: Path, shards: _Shards, config: DecoderConfig, rules: list[Rule]) -> Iterator[tuple[str, Tensor]]:
    prefix = _prefix(shards)

    def read(name: str) -> Tensor:
        return shards[prefix(name)].read(prefix(name))

    if prefix(_SLOPES) in shards and isinstance(config.positions, Alibi):
        slopes = read(_SLOPES).float().view(-1)
        ours = alibi_slopes(Alibi(), config.num_heads, 1, slopes.device)
        if slopes.shape != ours.shape or not torch.allclose(slopes, ours, rtol=1e-2):
            raise CheckpointError(f"{folder}: its ALiBi slopes are not the published ones; trained ones are not built")
    if config.tie_embeddings and "lm_head.weight" in shards and not _same_head(rules, read):
        raise CheckpointError(
            f"{folder}: config.json ties the output to the embedding, but lm_head.weight differs from it; "
            "set tie_word_embeddings to false if that is meant"
        )
    yield from read_by(rules, parameter_shapes(config), read, str(folder))


def _same_head(rules: list[Rule], read: Callable[[str], Tensor]) -> bool:
    embedding = next(rule for rule in rules if rule.ours == ("wte.weight",))
    return torch.equal(read("lm_head.weight"), read(embedding.theirs[0]))


# --- writing -------------------------------------------------------------------------------------------------------


def _with_slopes(tensors: Iterable[tuple[str, Tensor]], config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    yield from tensors
    yield _SLOPES, alibi_slopes(Alibi(), config.num_heads, 1, torch.device("cpu"))[:, None]


def _write_tensors(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, count: int, dtype: torch.dtype | None, shard_bytes: int
) -> dict[torch.dtype, None]:
    """Write all tensors; returns the dtypes that there were, in order."""
    writer = SafetensorsWriter(folder, count, shard_bytes)
    dtypes: dict[torch.dtype, None] = {}
    try:
        for name, tensor in tensors:
            tensor = tensor if dtype is None else tensor.to(dtype)
            dtypes[tensor.dtype] = None
            writer.write(name, tensor)
            del tensor
        writer.close()
    finally:
        writer.abandon()
    return dtypes


def _write_files(checkpoint: Checkpoint, folder: Path, facts: CardFacts) -> None:
    for name, content in checkpoint.files.items():
        _copy(content, folder / name)
    if "generation_config.json" not in checkpoint.files:
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **checkpoint.notes})
    if "tokenizer.json" in checkpoint.files and "tokenizer_config.json" not in checkpoint.files:
        length = checkpoint.config.max_positions
        value = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
        _write_json(folder / "tokenizer_config.json", value)
    if "README.md" not in checkpoint.files:
        (folder / "README.md").write_text(model_card(checkpoint.config, facts))


def _copy(content: Path | bytes, to: Path) -> None:
    to.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
