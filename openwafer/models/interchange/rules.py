"""What Hugging Face calls the parameters of each family, and how its values are laid out.

GPT-2's linear layers (`Conv1D`) hold their weight as [in, out], so it is transposed. Llama has query, key and value
apart, ours are one matrix. Facts: the modeling files in `transformers`, and those beside the published BTLM and Jais.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, cat

from openwafer.models.config import GATED, DecoderConfig, Learned
from openwafer.models.interchange.checkpoint import Rule, Tensors

TRUNK = "transformer."
"""Prefix that a GPT-2 checkpoint with a head has, and one without (the original) does not."""


def gpt2_rules(config: DecoderConfig) -> Iterator[Rule]:
    """GPT-2, and with a gate and without learned positions BTLM and Jais."""
    yield Rule(("wte.weight",), (f"{TRUNK}wte.weight",))
    if isinstance(config.positions, Learned):
        yield Rule(("wpe.weight",), (f"{TRUNK}wpe.weight",))
    linear = {"attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    if config.activation in GATED:
        linear["mlp.gate"] = "mlp.c_fc2"
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"{TRUNK}h.{layer}"
        for norm in ("ln_1", "ln_2"):
            for part in ("weight", "bias"):
                yield Rule((f"{ours}.{norm}.{part}",), (f"{theirs}.{norm}.{part}",))
        for name, other in linear.items():
            yield Rule((f"{ours}.{name}.weight",), (f"{theirs}.{other}.weight",), _transpose, _transpose)
            yield Rule((f"{ours}.{name}.bias",), (f"{theirs}.{other}.bias",))
    for part in ("weight", "bias"):
        yield Rule((f"ln_f.{part}",), (f"{TRUNK}ln_f.{part}",))
    if not config.tie_embeddings:
        yield Rule(("lm_head.weight",), ("lm_head.weight",))


def llama_rules(config: DecoderConfig) -> Iterator[Rule]:
    """Llama and Mistral, and with experts Mixtral."""
    yield Rule(("wte.weight",), ("model.embed_tokens.weight",))
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        yield Rule((f"{ours}.ln_1.weight",), (f"{theirs}.input_layernorm.weight",))
        yield Rule((f"{ours}.ln_2.weight",), (f"{theirs}.post_attention_layernorm.weight",))
        for part in ("weight", "bias") if config.qkv_bias else ("weight",):
            yield _fused(config, f"{ours}.attn.qkv.{part}", [f"{theirs}.self_attn.{p}_proj.{part}" for p in "qkv"])
        for part in ("weight", "bias") if config.attention_out_bias else ("weight",):
            yield Rule((f"{ours}.attn.out.{part}",), (f"{theirs}.self_attn.o_proj.{part}",))
        yield from _llama_mlp(config, ours, theirs)
    yield Rule(("ln_f.weight",), ("model.norm.weight",))
    if not config.tie_embeddings:
        yield Rule(("lm_head.weight",), ("lm_head.weight",))


def _llama_mlp(config: DecoderConfig, ours: str, theirs: str) -> Iterator[Rule]:
    if config.experts is None:
        for name in ("gate", "up", "down"):
            for part in ("weight", "bias") if config.mlp_bias else ("weight",):
                yield Rule((f"{ours}.mlp.{name}.{part}",), (f"{theirs}.mlp.{name}_proj.{part}",))
        return
    yield Rule((f"{ours}.mlp.router.weight",), (f"{theirs}.block_sparse_moe.gate.weight",))
    for expert in range(config.experts.num_experts):
        for name, other in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            yield Rule(
                (f"{ours}.mlp.experts.{expert}.{name}.weight",),
                (f"{theirs}.block_sparse_moe.experts.{expert}.{other}.weight",),
            )


def _fused(config: DecoderConfig, ours: str, theirs: list[str]) -> Rule:
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]

    def join(parts: Tensors) -> Tensors:
        if [len(part) for part in parts] != sizes:
            raise RuntimeError("query, key and value do not have the sizes of their heads")
        return (cat(parts),)

    return Rule((ours,), tuple(theirs), join, lambda whole: tuple(whole[0].split(sizes)))


def _transpose(tensors: Tensors) -> tuple[Tensor, ...]:
    return tuple(tensor.t().contiguous() for tensor in tensors)
