"""The model section of a ModelZoo YAML and our `DecoderConfig`, both ways.

Only what fixes the module and its initial weights; trainer, optimizer and data belong to the recipe. Facts: ModelZoo
2.10, `models/nlp/gpt2/gpt2_model.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from openwafer.base.errors import CheckpointError, ConfigError
from openwafer.models.config import Alibi, DecoderConfig, Experts, Learned, MuP, Positions, RopeScaling, Rotary
from openwafer.models.interchange.modelzoo_section import (
    ACTIVATIONS,
    MixtureOfExperts,
    ModelSection,
    PositionExtras,
    checkpoint_section,
)

_LLAMA3_POSITIONS = 8192
"""Of llama3 scaling where a section names none. Source: ModelZoo 2.10."""


def from_modelzoo(model: Mapping[str, Any], source: str) -> DecoderConfig:
    """The decoder whose weights a checkpoint with this model section has.

    Raises:
        CheckpointError: it is none of ours, or something in it is not built here.
    """
    try:
        return _parts(checkpoint_section(model))
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def decoder_of(section: ModelSection) -> DecoderConfig:
    """The decoder that a section describes, with the initial weights that it asks for."""
    config = _parts(section)
    return dataclasses.replace(config, **_deviations(section, config))


def _parts(section: ModelSection) -> DecoderConfig:
    return DecoderConfig(
        hidden_size=section.hidden_size,
        num_layers=section.num_hidden_layers,
        num_heads=section.num_heads,
        num_kv_heads=section.num_kv_heads,
        head_dim=section.head_dim,
        ffn_size=section.filter_size,
        vocab_size=section.vocab_size,
        max_positions=section.max_position_embeddings,
        positions=_positions(section),
        window=section.attention_sliding_window_length,
        sink_tokens=section.attention_sink_tokens or 0,
        norm=section.norm_type,
        layer_norm_eps=section.layer_norm_epsilon,
        activation=ACTIVATIONS[section.nonlinearity],
        experts=_experts(section.moe),
        qkv_bias=section.use_projection_bias_in_attention,
        attention_out_bias=section.use_ffn_bias_in_attention,
        mlp_bias=section.use_ffn_bias,
        dropout=section.dropout_rate,
        tie_embeddings=section.share_embedding_weights,
        mup=_mup(section),
    )


def _positions(section: ModelSection) -> Positions:
    if section.position_embedding_type == "learned":
        return Learned()
    if section.position_embedding_type == "alibi":
        return Alibi(factor=section.pos_scaling_factor)
    dim = int(section.head_dim * 0.25) if section.rotary_dim is None else section.rotary_dim  # ModelZoo's own default
    return Rotary(theta=section.rope_theta, dim=None if dim == section.head_dim else dim, scaling=_scaling(section))


def _scaling(section: ModelSection) -> RopeScaling | None:
    factor, extra = section.pos_scaling_factor, section.pos_scaling_extra_args or PositionExtras()
    if factor == 1.0:
        return None
    original = extra.original_max_position_embeddings
    kind = section.pos_scaling_type
    if kind == "linear":
        return RopeScaling(kind=kind, factor=factor, original_positions=original)
    if kind == "llama3":
        return RopeScaling(
            kind=kind,
            factor=factor,
            original_positions=original or _LLAMA3_POSITIONS,
            low_freq_factor=extra.low_freq_factor,
            high_freq_factor=extra.high_freq_factor,
        )
    usual = PositionExtras()
    is_usual = (extra.mscale_a, extra.mscale_b) == (usual.mscale_a, usual.mscale_b)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_positions=original,
        beta_fast=extra.beta_fast,
        beta_slow=extra.beta_slow,
        attention_factor=None if is_usual else extra.mscale_a * math.log(factor) + extra.mscale_b,
        truncate=extra.truncate,
    )


def _experts(moe: MixtureOfExperts) -> Experts | None:
    shared = moe.num_shared_experts or 0
    if moe.num_experts + shared <= 1:
        return None
    return Experts(
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        num_shared=shared,
        balance_coefficient=moe.load_balancing_loss_coef,
        null_probability=moe.null_expert_bias or 0.0,
    )


def _mup(section: ModelSection) -> MuP | None:
    scale, base = section.output_logits_scale, section.mup_base_hidden_size
    given = (section.scale_qk_dot_by_d, scale, section.output_logits_alpha)
    factors = (section.embeddings_scale, section.attention_logits_alpha)
    if base is None and not any(given) and factors == (1.0, 1.0):
        return None
    # Before release 2.3 the factors stood for themselves, without base sizes: then width 1 and the product as it is.
    alpha = scale if base is None and scale else section.output_logits_alpha
    return MuP(
        base_hidden_size=base or section.hidden_size,
        base_ffn_size=section.mup_base_filter_size or section.filter_size,
        embeddings_scale=section.embeddings_scale,
        output_alpha=1.0 if alpha is None else alpha,
        attention_alpha=section.attention_logits_alpha,
        scores_by_head_dim=base is not None if section.scale_qk_dot_by_d is None else section.scale_qk_dot_by_d,
        logits_by_width=section.scale_output_logits_by_d,
    )


def _deviations(section: ModelSection, config: DecoderConfig) -> dict[str, float]:
    """Standard deviations by group of weights.

    Source: ModelZoo 2.10's documentation of the initializers and of muP (arXiv 2203.03466, table 8). One difference:
    under muP, where ffn_output_layer_initializer is left out, the MLP's output has output_layer_initializer (chosen:
    so it is without muP, and in the configs before 2.3); release 2.10 itself falls back to initializer_range there.
    """
    base = (section.initializer or section).std
    given, ffn_given = section.output_layer_initializer, section.ffn_output_layer_initializer
    depth = (2 * section.num_hidden_layers) ** -0.5
    if section.mup_base_hidden_size is not None:
        output = (given or section).std * config.width_scale**0.5 * depth
        ffn_output = (ffn_given or given or section).std * config.ffn_width_scale**0.5 * depth
    else:
        output = given.std if given else base * (depth if section.initializer is None else 1.0)
        ffn_output = ffn_given.std if ffn_given else output
    return {
        "init_std": base,
        "embedding_init_std": (section.embedding_initializer or section).std,
        "hidden_init_std": base * config.width_scale**0.5,
        "output_init_std": output,
        "ffn_output_init_std": ffn_output,
    }


def to_modelzoo(config: DecoderConfig) -> dict[str, Any]:
    """The model section of a decoder, in the style of release 2.3 and later."""
    value: dict[str, Any] = {
        "name": _name(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_heads": config.num_heads,
        "filter_size": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "norm_type": config.norm,
        "layer_norm_epsilon": config.layer_norm_eps,
        "nonlinearity": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "use_projection_bias_in_attention": config.qkv_bias,
        "use_ffn_bias_in_attention": config.attention_out_bias,
        "use_ffn_bias": config.mlp_bias,
        "use_bias_in_output": False,
        "dropout_rate": config.dropout,
        "attention_dropout_rate": config.dropout,
        "share_embedding_weights": config.tie_embeddings,
        "attention_type": "scaled_dot_product",
        **_write_positions(config),
    }
    if config.head_dim * config.num_heads != config.hidden_size:
        value["attention_inner_dim"] = config.head_dim * config.num_heads
    if config.num_kv_heads != config.num_heads:
        value["attention_module"] = "multiquery_attention"
        value["extra_attention_params"] = {"num_kv_groups": config.num_kv_heads}
    if config.window is not None:
        value["attention_sliding_window_length"] = config.window
    if config.sink_tokens:
        value["attention_sink_tokens"] = config.sink_tokens
    if config.experts is not None:
        value["moe"] = {
            "num_experts": config.experts.num_experts,
            "top_k": config.experts.top_k,
            "load_balancing_loss_coef": config.experts.balance_coefficient,
            "null_expert_bias": config.experts.null_probability,
        }
        if config.experts.num_shared:
            value["moe"]["num_shared_experts"] = config.experts.num_shared
    if config.mup is not None:
        value |= {
            "mup_base_hidden_size": config.mup.base_hidden_size,
            "mup_base_filter_size": config.mup.base_ffn_size,
            "embeddings_scale": config.mup.embeddings_scale,
            "output_logits_alpha": config.mup.output_alpha,
            "attention_logits_alpha": config.mup.attention_alpha,
            "scale_qk_dot_by_d": config.mup.scores_by_head_dim,
            "scale_output_logits_by_d": config.mup.logits_by_width,
        }
    return value


def _name(config: DecoderConfig) -> str:
    if config.norm == "rmsnorm":
        return "mixtral" if config.experts else "llama" if config.window is None else "mistral"
    if isinstance(config.positions, Alibi):
        return "jais" if config.vocab_size == 84992 else "btlm"
    return "gpt3"


def _write_positions(config: DecoderConfig) -> dict[str, Any]:
    positions = config.positions
    if isinstance(positions, Learned):
        return {"position_embedding_type": "learned"}
    if isinstance(positions, Alibi):
        if positions.train_positions is not None:
            raise CheckpointError("ModelZoo has no ALiBi that squeezes longer sequences; set factor instead")
        return {"position_embedding_type": "alibi", "pos_scaling_factor": positions.factor}
    value = {"position_embedding_type": "rotary", "rotary_dim": config.rotary_dim, "rope_theta": positions.theta}
    scaling = positions.scaling
    if scaling is None:
        return value
    if scaling.kind == "dynamic":
        raise CheckpointError("ModelZoo has no dynamic rotary scaling; linear, yarn and llama3 are written")
    value |= {"pos_scaling_type": scaling.kind, "pos_scaling_factor": scaling.factor}
    used = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow")}
    extra = {name: getattr(scaling, name) for name in used.get(scaling.kind, ())}
    if scaling.original_positions is not None:
        extra["original_max_position_embeddings"] = scaling.original_positions
    return value | ({"pos_scaling_extra_args": extra} if extra else {})
