"""GGUF files, as llama.cpp reads them: written through the `gguf` package, a tensor at a time.

llama.cpp's architectures are fixed programs. Cerebras-GPT becomes its `gpt2`, which computes GELU by its tanh
approximation: logits differ slightly. BTLM and Jais become its `jais`, whose scores are divided by head_dim; the
other factors of muP are folded into the embedding and an output matrix of its own. Llama, Mistral and Mixtral become
its `llama`, which knows no window: the context ends where the window does. Facts: llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwafer.base.errors import CheckpointError, ConfigError
from openwafer.models.config import GATED, Alibi, DecoderConfig, Learned, Rotary
from openwafer.models.interchange.checkpoint import Checkpoint, Rule, Tensors, parameter_shapes, written
from openwafer.models.interchange.fold import folded
from openwafer.models.interchange.mdl import pairs
from openwafer.models.interchange.output import new_file
from openwafer.models.rotary import frequencies

ALIBI_BIAS = 8.0
"""llama.cpp's max_alibi_bias: the first slope of n heads is 2 ** (-8 / n), as in the paper."""


def write_gguf(checkpoint: Checkpoint, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a new GGUF file, whole or not at all.

    Args:
        dtype: of the matrices; None for fp16. Vectors stay fp32, as llama.cpp wants them.

    Raises:
        ConfigError: the file exists, the gguf package is missing, or llama.cpp has no such architecture.
        CheckpointError: the source is damaged, or the disk does not take it.
    """
    gguf = _package()
    architecture = _architecture(checkpoint.config)
    if architecture == "gpt2" and checkpoint.config.mup is not None:
        checkpoint = folded(checkpoint)
    config = checkpoint.config
    rules = list(_rules(config, architecture))
    shapes = parameter_shapes(config)
    matrix = dtype or torch.float16
    with new_file(path) as partial:
        writer = gguf.GGUFWriter(None, architecture)
        try:
            _write_shape(writer, config, architecture, path.stem)
            _write_tokenizer(writer, gguf, checkpoint)
            order: list[str] = []
            for name, shape in _theirs(rules, shapes, config, architecture):
                kind = matrix if len(shape) > 1 else torch.float32
                count = math.prod(shape) * kind.itemsize
                sample = _numpy(torch.empty((*shape[:-1], 1), dtype=kind))
                # bfloat16 is announced in bytes, as which its memory is handed over.
                stored = [*shape[:-1], shape[-1] * sample.shape[-1]]
                writer.add_tensor_info(name, stored, sample.dtype, count, _quantization(gguf, kind))
                order.append(name)
            writer.write_header_to_file(path=partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            _write_tensors(writer, checkpoint, rules, architecture, order, matrix)
        finally:
            writer.close()


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("writing GGUF needs the gguf package: pip install 'openwafer[gguf]'") from error
    return gguf


def _quantization(gguf: Any, dtype: torch.dtype) -> Any:
    kinds = gguf.GGMLQuantizationType
    return {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[dtype]


def _numpy(tensor: Tensor) -> Any:
    """The tensor's memory as gguf takes it: bfloat16 as bytes."""
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _architecture(config: DecoderConfig) -> str:
    plain = config.attention_out_bias and config.qkv_bias and config.mlp_bias and config.norm == "layernorm"
    mha = config.num_kv_heads == config.num_heads and config.head_dim * config.num_heads == config.hidden_size
    if plain and mha and isinstance(config.positions, Learned) and config.activation in ("gelu", "gelu_tanh"):
        return "gpt2"
    jais = config.mup is not None and config.score_scale == 1 / config.head_dim and config.positions == Alibi()
    if plain and mha and jais and config.activation == "swiglu" and config.experts is None:
        return "jais"
    rms = config.norm == "rmsnorm" and config.activation == "swiglu" and config.mup is None
    bare = not (config.qkv_bias or config.attention_out_bias or config.mlp_bias)
    usual = config.experts is None or (config.experts.num_shared == 0 and config.experts.null_probability == 0)
    fixed = isinstance(config.positions, Rotary) and getattr(config.positions.scaling, "kind", None) != "dynamic"
    if rms and bare and usual and fixed and not config.sink_tokens:
        return "llama"
    raise ConfigError(
        "llama.cpp has no architecture for this model; those of the Cerebras-GPT, BTLM, Jais, Llama, Mistral and "
        "Mixtral families are written"
    )


def _write_shape(writer: Any, config: DecoderConfig, architecture: str, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(min(config.max_positions, config.window or config.max_positions))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if architecture != "llama":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        if architecture == "jais":
            writer.add_max_alibi_bias(ALIBI_BIAS)
        return
    assert isinstance(config.positions, Rotary)
    writer.add_layer_norm_rms_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.positions.theta)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.experts is not None:
        writer.add_expert_count(config.experts.num_experts)
        writer.add_expert_used_count(config.experts.top_k)
    scaling = config.positions.scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        writer.add_key_value("llama.rope.scaling.type", scaling.kind, _package().GGUFValueType.STRING)
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling.original_positions or config.max_positions)


# --- tensors -------------------------------------------------------------------------------------------------------


def _rules(config: DecoderConfig, architecture: str) -> Iterator[Rule]:
    yield Rule(("wte.weight",), ("token_embd.weight",))
    if architecture == "gpt2":
        yield Rule(("wpe.weight",), ("position_embd.weight",))
    parts = ("weight",) if architecture == "llama" else ("weight", "bias")
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"blk.{layer}"
        names = {"ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.out": "attn_output"}
        if config.experts is None:
            names |= {"mlp.up": "ffn_up", "mlp.down": "ffn_down"}
            if config.activation in GATED:
                names["mlp.gate"] = "ffn_gate"
        if architecture != "llama":
            names["attn.qkv"] = "attn_qkv"
        for part in parts:
            for name, other in names.items():
                yield Rule((f"{ours}.{name}.{part}",), (f"{theirs}.{other}.{part}",))
        if architecture == "llama":
            yield _attention(config, ours, theirs)
        if config.experts is not None:
            yield from _experts(config, ours, theirs)
    for part in parts:
        yield Rule((f"ln_f.{part}",), (f"output_norm.{part}",))
    if not config.tie_embeddings:
        yield Rule(("lm_head.weight",), ("output.weight",))


def _attention(config: DecoderConfig, ours: str, theirs: str) -> Rule:
    """Query, key and value apart, with neighbours rotating together."""
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]

    def split(whole: Tensors) -> Tensors:
        query, key, value = whole[0].split(sizes)
        turned = config.rotary_dim
        return pairs(query, config.head_dim, turned), pairs(key, config.head_dim, turned), value

    return Rule((f"{ours}.attn.qkv.weight",), tuple(f"{theirs}.attn_{part}.weight" for part in "qkv"), split=split)


def _experts(config: DecoderConfig, ours: str, theirs: str) -> Iterator[Rule]:
    assert config.experts is not None
    yield Rule((f"{ours}.mlp.router.weight",), (f"{theirs}.ffn_gate_inp.weight",))
    for name in ("gate", "up", "down"):
        each = tuple(f"{ours}.mlp.experts.{number}.{name}.weight" for number in range(config.experts.num_experts))
        yield Rule(each, (f"{theirs}.ffn_{name}_exps.weight",), split=lambda tensors: (torch.stack(tensors),))


def _theirs(
    rules: list[Rule], shapes: dict[str, torch.Size], config: DecoderConfig, architecture: str
) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor of the file, in the order of the parameters."""
    meta = ((name, torch.empty(shapes[name], device="meta")) for name in shapes)
    for name, tensor in _all(rules, meta, config, architecture):
        yield name, list(tensor.shape)


def _all(rules: list[Rule], tensors: Any, config: DecoderConfig, architecture: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in written(rules, tensors):
        if name == "token_embd.weight" and architecture == "jais":
            if config.tie_embeddings:
                yield "output.weight", tensor * config.logits_scale
            tensor = tensor * config.embeddings_scale
        elif name == "output.weight" and architecture == "jais":
            tensor = tensor * config.logits_scale
        yield name, tensor
    if isinstance(config.positions, Rotary) and config.positions.scaling and config.positions.scaling.kind == "llama3":
        plain, _ = frequencies(Rotary(theta=config.positions.theta), config.rotary_dim, 1, config.max_positions)
        scaled, _ = frequencies(config.positions, config.rotary_dim, 1, config.max_positions)
        yield "rope_freqs.weight", plain / scaled


def _write_tensors(
    writer: Any, checkpoint: Checkpoint, rules: list[Rule], architecture: str, order: list[str], matrix: torch.dtype
) -> None:
    """Write every tensor in the order announced; one that comes early waits."""
    waiting: dict[str, Tensor] = {}
    expected = iter(order)
    due = next(expected, None)
    for name, tensor in _all(rules, checkpoint.tensors(), checkpoint.config, architecture):
        tensor = tensor.detach().to(matrix if tensor.dim() > 1 else torch.float32).contiguous().cpu()
        waiting[name] = tensor if name == due else tensor.clone()
        while due in waiting:
            writer.write_tensor_data(_numpy(waiting.pop(due)))
            due = next(expected, None)
    assert due is None and not waiting


# --- tokenizer -----------------------------------------------------------------------------------------------------


def _write_tokenizer(writer: Any, gguf: Any, checkpoint: Checkpoint) -> None:
    content = checkpoint.files.get("tokenizer.json")
    if content is None:
        writer.add_tokenizer_model("none")
        return
    text = content if isinstance(content, bytes) else content.read_bytes()
    tokens, kinds, merges = _bpe(text, checkpoint.config.vocab_size, gguf)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if checkpoint.config.vocab_size == 128256 else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    notes: dict[str, Callable[[int], None]] = {
        "bos_token_id": writer.add_bos_token_id,
        "eos_token_id": writer.add_eos_token_id,
        "pad_token_id": writer.add_pad_token_id,
    }
    for name, add in notes.items():
        if isinstance(checkpoint.notes.get(name), int):
            add(checkpoint.notes[name])


def _bpe(text: bytes, vocab_size: int, gguf: Any) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and the merges of a byte-level BPE tokenizer."""
    try:
        value = json.loads(text)
        model, added = value["model"], value.get("added_tokens") or []
        vocabulary = {index: token for token, index in model["vocab"].items()}
        byte_level = "ByteLevel" in json.dumps([value.get("pre_tokenizer"), value.get("decoder")])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        special = {entry["id"]: entry["content"] for entry in added}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"tokenizer.json is not understood: {error}") from error
    if model.get("type") != "BPE" or not byte_level:
        raise ConfigError(
            f"tokenizer.json is {model.get('type')!r}, not byte-level BPE; GGUF of such a model is not written here. "
            "Remove tokenizer.json to write one without a tokenizer"
        )
    types = gguf.TokenType
    tokens, kinds = [], []
    for index in range(vocab_size):
        token = special.get(index, vocabulary.get(index))
        tokens.append(f"[PAD{index}]" if token is None else token)
        kinds.append(int(types.UNUSED if token is None else types.CONTROL if index in special else types.NORMAL))
    return tokens, kinds, merges
