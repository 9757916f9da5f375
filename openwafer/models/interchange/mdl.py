"""Cerebras checkpoints (`.mdl`): one HDF5 file of format version 0.5, a dataset a tensor, a JSON a name.

The file embeds the ModelZoo YAML it was trained with, so it alone is enough. Objects that are neither numbers, text nor
tensors are pickles in this format: they are skipped, never loaded. Links out of the file are refused. Optimizer state
is not read. Facts: the published wheel cerebras_appliance 2.10 (storage); ModelZoo 2.10 (names, converters).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from openwafer.base.errors import CheckpointError, ConfigError
from openwafer.models.alibi import alibi_slopes
from openwafer.models.config import GATED, Alibi, DecoderConfig, Learned, Rotary
from openwafer.models.interchange.checkpoint import (
    Checkpoint,
    Rule,
    Tensors,
    check_size,
    parameter_shapes,
    read_by,
    written,
)
from openwafer.models.interchange.modelzoo_config import from_modelzoo, to_modelzoo
from openwafer.models.interchange.output import new_file

SIGNATURE = b"\x89HDF\r\n\x1a\n"
VERSION = 0.5
CEREBRAS_VERSION = "2.10.0"
_MODEL = "model.model."
_DTYPES = {"torch.float32": torch.float32, "torch.float16": torch.float16, "torch.bfloat16": torch.bfloat16}
_META = "__metadata__"
_RTFX = {"torch.float16": 10, "torch.float32": 11, "torch.bfloat16": 15}
"""Cerebras's own numbers of the dtypes. Source: RtFxProto.ElementType in the published wheel."""


def read_mdl(path: Path) -> Checkpoint:
    """The model in a `.mdl` file.

    Raises:
        CheckpointError: it is damaged, unfinished, of another version, or of a model that is not built here.
        ConfigError: h5py is not installed.
    """
    with _open(path) as file:
        attributes = dict(file.attrs)
        _check_header(path, attributes)
        config = from_modelzoo(_model_section(path, attributes), str(path))
        links = _links(path, attributes)
        sizes = {name: _dataset(path, file, name).size for name in file if name.startswith(_MODEL)}
        check_size(config, len(sizes), sum(sizes.values()), str(path))
        rules = list(_rules(config, sizes))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        with _open(path) as file:

            def read(name: str) -> Tensor:
                full = _MODEL + name
                return _read(path, file, links.get(full, full))

            yield from read_by(rules, parameter_shapes(config), read, str(path))

    return Checkpoint(config, tensors, str(path))


def write_mdl(checkpoint: Checkpoint, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a new `.mdl` file with the model and its ModelZoo YAML, whole or not at all.

    Raises:
        ConfigError: the file exists, or h5py is not installed.
        CheckpointError: the source is damaged, the model has no ModelZoo YAML, or the disk does not take it.
    """
    config = checkpoint.config
    section = to_modelzoo(config)
    if from_modelzoo(section, "ModelZoo").positions != config.positions:
        raise CheckpointError("ModelZoo's YAML cannot express this model's positions")
    names: dict[str, str | None] = {}
    with new_file(path) as partial, _h5py().File(partial, "w") as file:
        entries: dict[str, Any] = {}
        for name, tensor in written(_rules(config, None), checkpoint.tensors()):
            full = _MODEL + name
            entries[full] = _write(file, full, tensor if dtype is None else tensor.to(dtype))
            names[name] = None
        if isinstance(config.positions, Alibi):
            slopes = alibi_slopes(Alibi(), config.num_heads, 1, torch.device("cpu"))[:, None]
            name = "embedding_layer.position_embed_helper.slopes"
            entries[_MODEL + name], names[name] = _write(file, _MODEL + name, slopes), None
        for alias, name in _aliases(config):
            entries[_MODEL + alias], names[alias] = _link(_MODEL + name), name
        params = {"trainer": {"init": {"model": section}}}
        yaml = {"version": CEREBRAS_VERSION, "model_name": "GPT2LMHeadModel", "params": params}
        _write_header(file, entries, {"model": {f"model.{name}": 0 for name in names}, _META: [yaml]})


# --- reading -------------------------------------------------------------------------------------------------------


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("reading and writing .mdl needs h5py: pip install 'openwafer[cerebras]'") from error
    # Registers the LZ4 filter; without it, a file that was compressed says so when it is read.
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401
    return h5py


def _open(path: Path) -> Any:
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise CheckpointError(f"{path} is not a whole HDF5 file: {error}") from error


def _check_header(path: Path, attributes: Mapping[str, Any]) -> None:
    version = attributes.get("__version__")
    if version is None or float(version) < VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; {VERSION} is read: load and save it with release 2.3 or later"
        )
    if not attributes.get("__SUCCESS__", False):
        raise CheckpointError(f"{path} was not finished by whoever wrote it (__SUCCESS__ is missing)")


def _model_section(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The model part of the embedded YAML: every leaf is an attribute of its own."""
    start = f"{_META}."
    leaves = {name[: -len(_META) - 1]: text for name, text in attributes.items() if name.startswith(start)}
    tree: dict[str, Any] = {}
    for key, text in leaves.items():
        parts = key.split(".")
        if "model" not in parts or "params" not in parts:
            continue
        entry = _entry(path, text, key)
        _, *below = parts[parts.index("model") :]
        if below:
            _put(tree, below, entry.get("scalar_value", entry.get("string_value")))
    if "hidden_size" not in tree:
        raise CheckpointError(f"{path} does not embed the YAML of its model; save it with ModelZoo 2.3 or later")
    return tree


def _put(tree: dict[str, Any], below: list[str], value: Any) -> None:
    for part in below[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            return
    tree[below[-1]] = value


def _entry(path: Path, text: Any, key: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)[f"{key}.{_META}"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: the metadata of {key} is not understood") from error
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: the metadata of {key} is not understood")
    return entry


def _links(path: Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that are stored under another name."""
    links = {}
    for name, text in attributes.items():
        key = name[: -len(_META) - 1]
        if name.startswith(_MODEL) and name.endswith(_META):
            entry = _entry(path, text, key)
            if entry.get("__LINKED__"):
                links[key] = str(entry.get("key"))
    return links


def _dataset(path: Path, file: Any, name: str) -> Any:
    h5py = _h5py()
    link = file.get(name, getlink=True)
    if link is None:
        raise CheckpointError(f"{path} lacks {name}: it is not whole, or its YAML belongs to another model")
    dataset: Any = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{path}: {name} lies outside of the file; only what is in it is read")
    return dataset


def _read(path: Path, file: Any, name: str) -> Tensor:
    dataset = _dataset(path, file, name)
    try:
        kinds = [str(kind) for kind in dataset.attrs.get("dtypes", ())]
        values = dataset[...]
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {name} cannot be read: {error} (a file that was compressed needs hdf5plugin: "
            "pip install 'openwafer[cerebras]')"
        ) from error
    if len(kinds) != 1 or kinds[0] not in _DTYPES or not isinstance(values, numpy.ndarray):
        kind = ", ".join(kinds) or "unknown"
        raise CheckpointError(f"{path}: {name} has dtype {kind}; {', '.join(_DTYPES)} are read")
    dtype = _DTYPES[kinds[0]]
    # bfloat16 is stored as 16-bit integers.
    stored = torch.from_numpy(numpy.ascontiguousarray(values)).view(values.shape)
    if stored.dtype != (torch.int16 if dtype == torch.bfloat16 else dtype):
        raise CheckpointError(f"{path}: {name} is stored as {stored.dtype}, but says that it is {dtype}")
    return stored.view(dtype)


# --- writing -------------------------------------------------------------------------------------------------------


def _write(file: Any, name: str, tensor: Tensor) -> dict[str, Any]:
    """Store a tensor; returns its metadata."""
    tensor = tensor.detach().cpu().contiguous()
    kind = str(tensor.dtype)
    if kind not in _DTYPES:
        raise CheckpointError(f"{name} has dtype {kind}; .mdl holds {', '.join(_DTYPES)}")
    stored = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    dataset = file.create_dataset(name, data=stored.numpy())
    metadata = {
        "__TORCH__": True,
        "shapes": [list(tensor.shape)],
        "dtypes": [kind],
        "rtfx_dtypes": [_RTFX[kind]],
        "__TYPE__": "TorchTensorSerializer",
        "__NUMPY__": True,
    }
    dataset.attrs.update(metadata)
    return metadata


def _link(key: str) -> dict[str, Any]:
    return {"key": key, "__LINKED__": True, "__TYPE__": "LinkedObject", "__NONE__": True}


def _scalar(value: Any) -> dict[str, Any]:
    kind = "string_value" if isinstance(value, str) else "scalar_value"
    name = {"string_value": "StringSerializer", "scalar_value": "ScalarSerializer"}[kind]
    return {kind: value, "__TYPE__": name, "__NONE__": True}


def _write_header(file: Any, entries: dict[str, Any], tree: dict[str, Any]) -> None:
    """The description of the tree, and the metadata of each of its leaves."""
    leaves, spec = pytree.tree_flatten_with_path(tree)
    for path, value in leaves:
        key = ".".join(str(getattr(part, "key", getattr(part, "idx", None))) for part in path)
        metadata = entries.get(key) or _scalar(value)
        described = {"__spec__": _spec({key: 0}), "__objects__": [key], f"{key}.{_META}": metadata}
        file.attrs[f"{key}.{_META}"] = json.dumps(described)
    file.attrs["__spec__"] = json.dumps(_spec_of(tree, spec))
    file.attrs["__version__"] = VERSION
    file.attrs["__cstorch_version__"] = CEREBRAS_VERSION
    file.attrs["__SUCCESS__"] = True


def _spec(tree: Any) -> tuple[Any, str]:
    return _spec_of(tree, pytree.tree_structure(tree))


def _spec_of(tree: Any, spec: Any) -> tuple[Any, str]:
    return pytree.tree_map(lambda _: "*", tree), pytree.treespec_dumps(spec)


# --- names ---------------------------------------------------------------------------------------------------------


def _rules(config: DecoderConfig, have: Mapping[str, int] | None) -> Iterator[Rule]:
    """ModelZoo's names. `have` are those of a file that is read; experts come in three layouts."""
    yield Rule(("wte.weight",), ("embedding_layer.word_embeddings.weight",))
    if isinstance(config.positions, Learned):
        yield Rule(("wpe.weight",), ("embedding_layer.position_embeddings.embed.weight",))
    norm_parts = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"transformer_decoder.layers.{layer}"
        for part in norm_parts:
            yield Rule((f"{ours}.ln_1.{part}",), (f"{theirs}.norm1.{part}",))
            yield Rule((f"{ours}.ln_2.{part}",), (f"{theirs}.norm3.{part}",))
        for part in ("weight", "bias") if config.qkv_bias else ("weight",):
            yield _attention(config, f"{ours}.attn.qkv.{part}", f"{theirs}.self_attn.proj_{{}}_dense_layer.{part}")
        for part in ("weight", "bias") if config.attention_out_bias else ("weight",):
            yield Rule((f"{ours}.attn.out.{part}",), (f"{theirs}.self_attn.proj_output_dense_layer.{part}",))
        if config.experts is None:
            yield from _mlp(config, f"{ours}.mlp", f"{theirs}.ffn.ffn.{{}}")
        else:
            yield Rule((f"{ours}.mlp.router.weight",), (f"{theirs}.ffn.gate.weight",))
            yield from _experts(config, ours, f"{theirs}.ffn.experts", have)
    for part in norm_parts:
        yield Rule((f"ln_f.{part}",), (f"ln_f.{part}",))
    if not config.tie_embeddings:
        yield Rule(("lm_head.weight",), ("lm_head.weight",))


def _linear(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    yield "up", "0.linear_layer"
    if config.activation in GATED:
        yield "gate", "0.linear_layer_for_glu"
    yield "down", "1.linear_layer"


def _mlp(config: DecoderConfig, ours: str, theirs: str) -> Iterator[Rule]:
    for name, other in _linear(config):
        for part in ("weight", "bias") if config.mlp_bias else ("weight",):
            yield Rule((f"{ours}.{name}.{part}",), (f"{theirs.format(other)}.{part}",))


def _experts(config: DecoderConfig, ours: str, theirs: str, have: Mapping[str, int] | None) -> Iterator[Rule]:
    assert config.experts is not None
    count, shared = config.experts.num_experts, config.experts.num_shared
    names = set(have or ())
    if f"{_MODEL}{theirs}.fused_ffns.0.linear_layer.expert_weights" in names:
        for name, other in _linear(config):
            each = tuple(f"{ours}.mlp.experts.{number}.{name}.weight" for number in range(count))
            yield Rule(each, (f"{theirs}.fused_ffns.{other}.expert_weights",), lambda fused: _unfused(fused, count))
        return
    inner = ".ffn.{}" if f"{_MODEL}{theirs}.experts.0.ffn.0.linear_layer.weight" in names else ".{}"
    for number in range(count):
        yield from _mlp(config, f"{ours}.mlp.experts.{number}", f"{theirs}.experts.{number}{inner}")
    for number in range(shared):
        other = f"{theirs}.shared_experts.{number}.ffn.{{}}"
        if inner == ".ffn.{}":  # there the shared ones come after the others
            other = f"{theirs}.experts.{count + number}.ffn.{{}}"
        yield from _mlp(config, f"{ours}.mlp.shared.{number}", other)


def _unfused(fused: Tensors, count: int) -> Tensors:
    """The matrices of [out, experts, in]."""
    if fused[0].dim() != 3 or fused[0].shape[1] != count:
        raise RuntimeError("there are not as many experts as the YAML says")
    return fused[0].unbind(dim=1)


def _attention(config: DecoderConfig, ours: str, theirs: str) -> Rule:
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    sizes = [count * config.head_dim for count in heads]
    turned = config.rotary_dim if isinstance(config.positions, Rotary) else 0

    def join(parts: Tensors) -> Tensors:
        if [len(part) for part in parts] != sizes:
            raise RuntimeError("query, key and value do not have the sizes of their heads")
        query, key = (_halves(part, config.head_dim, turned) for part in parts[:2])
        return (torch.cat((query, key, parts[2])),)

    def split(whole: Tensors) -> Tensors:
        query, key, value = whole[0].split(sizes)
        return pairs(query, config.head_dim, turned), pairs(key, config.head_dim, turned), value

    return Rule((ours,), tuple(theirs.format(part) for part in "qkv"), join, split)


def pairs(rows: Tensor, head_dim: int, turned: int) -> Tensor:
    """Rows of each head from halves that rotate together to neighbours that do, as ModelZoo has them."""
    return _reordered(rows, head_dim, lambda order: order[:turned].view(2, -1).t().reshape(-1), turned)


def _halves(rows: Tensor, head_dim: int, turned: int) -> Tensor:
    """The reverse of `pairs`."""
    return _reordered(rows, head_dim, lambda order: order[:turned].view(-1, 2).t().reshape(-1), turned)


def _reordered(rows: Tensor, head_dim: int, order: Callable[[Tensor], Tensor], turned: int) -> Tensor:
    if not turned:
        return rows
    index = torch.arange(head_dim)
    index = torch.cat((order(index), index[turned:]))
    return rows.view(-1, head_dim, *rows.shape[1:])[:, index].reshape(rows.shape)


def _aliases(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Names under which a tensor stands a second time."""
    for part in ("weight", "bias") if config.norm == "layernorm" else ("weight",):
        yield f"transformer_decoder.norm.{part}", f"ln_f.{part}"
    if config.tie_embeddings:
        yield "lm_head.weight", "embedding_layer.word_embeddings.weight"
