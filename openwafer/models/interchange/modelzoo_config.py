"""The model section of a ModelZoo YAML and our `DecoderConfig`, both ways.

Only what fixes the module; trainer, optimizer and data belong to the recipe. A key that changes what the model computes
is understood or refused by name. Facts: ModelZoo 2.10, `models/nlp/gpt2/gpt2_model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openwafer.base.errors import CheckpointError
from openwafer.models.config import (
    Activation,
    Alibi,
    DecoderConfig,
    Experts,
    Learned,
    MuP,
    Positions,
    RopeScaling,
    Rotary,
    Scaling,
)

NAMES = ("gpt2", "gpt3", "btlm", "jais", "llama", "mistral", "mixtral")

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "swiglu",
    "geglu": "geglu",
    "reglu": "reglu",
}
_SCALINGS: dict[str, Scaling] = {"linear": "linear", "yarn": "yarn", "YaRN": "yarn", "llama3": "llama3"}
_NOT_BUILT = {
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "attention_qk_norm_layer": None,
    "attention_chunk_size": None,
    "attention_vertical_column_spacing": None,
    "fixed_sparse_attention": None,
    "embedding_layer_norm": False,
    "norm_first_sandwich": False,
    "scale_qk_dot_by_layer_idx": False,
    "sliding_window_every_other_decoder_layer": False,
    "alibi_trainable_slopes": False,
    "use_bias_in_output": False,
    "use_sink_token": False,
    "position_embedding_offset": 0,
    "num_extra_input_vocab_tokens": 0,
    "rel_distance_mode": "default",
    "cross_attention_layers": [],
}
"""Keys that change what the model computes, and the values with which they do not."""


def from_modelzoo(model: Mapping[str, Any], source: str) -> DecoderConfig:
    """The decoder that a model section describes.

    Raises:
        CheckpointError: it is none of ours, or something in it is not built here.
    """
    model = {name: value for name, value in model.items() if value is not None}
    if str(model.get("name", "gpt2")).lower() not in NAMES:
        raise CheckpointError(f"{source}: the model is {model['name']!r}; {', '.join(NAMES)} are read")
    for name, harmless in _NOT_BUILT.items():
        if model.get(name, harmless) != harmless:
            raise CheckpointError(f"{source}: model.{name} is {model[name]!r}, which is not built here")
    try:
        return _decoder(model)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"does not describe a decoder: {error}"
        raise CheckpointError(f"{source}: the model section {what}") from error


def _decoder(model: Mapping[str, Any]) -> DecoderConfig:
    hidden, heads = model["hidden_size"], model["num_heads"]
    grouped = model.get("attention_module", "aiayn_attention") == "multiquery_attention"
    groups = dict(model.get("extra_attention_params", {})).get("num_kv_groups", 1)
    inner = model.get("attention_inner_dim", hidden)
    if inner % heads:
        raise ValueError(f"attention_inner_dim {inner} is not a multiple of num_heads {heads}")
    return DecoderConfig(
        hidden_size=hidden,
        num_layers=model["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=groups if grouped else heads,
        head_dim=inner // heads,
        ffn_size=model["filter_size"],
        vocab_size=model.get("vocab_size", 50257),
        max_positions=model.get("max_position_embeddings", 1024),
        positions=_positions(model),
        window=model.get("attention_sliding_window_length"),
        sink_tokens=model.get("attention_sink_tokens", 0),
        norm=model.get("norm_type", "layernorm"),
        layer_norm_eps=model.get("layer_norm_epsilon", 1e-5),
        activation=_ACTIVATIONS[model.get("nonlinearity", "gelu")],
        experts=_experts(model.get("moe") or model.get("moe_params") or {}),
        qkv_bias=model.get("use_projection_bias_in_attention", True),
        attention_out_bias=model.get("use_ffn_bias_in_attention", True),
        mlp_bias=model.get("use_ffn_bias", True),
        dropout=model.get("dropout_rate", 0.1),
        tie_embeddings=model.get("share_embedding_weights", True),
        mup=_mup(model),
    )


def _positions(model: Mapping[str, Any]) -> Positions:
    kind = model.get("position_embedding_type", "learned")
    factor = model.get("pos_scaling_factor", 1.0)
    if kind == "learned":
        return Learned()
    if kind == "alibi":
        return Alibi(factor=factor)
    if kind != "rotary":
        raise ValueError(f"position_embedding_type is {kind!r}; learned, alibi and rotary are built")
    head_dim = model.get("attention_inner_dim", model["hidden_size"]) // model["num_heads"]
    dim = model.get("rotary_dim", int(head_dim * 0.25))
    scaling = None
    if factor != 1.0:
        extra = dict(model.get("pos_scaling_extra_args") or {})
        original = extra.pop("original_max_position_embeddings", None)
        scale = _SCALINGS[model.get("pos_scaling_type", "linear")]
        scaling = RopeScaling(kind=scale, factor=factor, original_positions=original, **extra)
    return Rotary(theta=model.get("rope_theta", 10000.0), dim=None if dim == head_dim else dim, scaling=scaling)


def _experts(moe: Mapping[str, Any]) -> Experts | None:
    shared = moe.get("num_shared_experts") or 0
    if moe.get("num_experts", 0) + shared <= 1:
        return None
    usual = {
        "routing_algorithm": "learned",
        "router_selection_nonlinearity": "softmax",
        "expert_weighting_nonlinearity": "softmax",
        "expert_weighting_normalization": True,
        "router_use_bias": False,
        "probability_before_ffn": False,
    }
    for name, value in usual.items():
        if moe.get(name, value) != value:
            raise ValueError(f"moe.{name} is {moe[name]!r}; {value!r} is built")
    return Experts(
        num_experts=moe["num_experts"],
        top_k=moe.get("top_k", 1),
        num_shared=shared,
        balance_coefficient=moe.get("load_balancing_loss_coef", 0.0),
        null_probability=moe.get("null_expert_bias") or 0.0,
    )


def _mup(model: Mapping[str, Any]) -> MuP | None:
    scale = model.get("output_logits_scale")
    base = model.get("mup_base_hidden_size")
    others = (model.get("embeddings_scale", 1.0) != 1.0, model.get("scale_qk_dot_by_d"), scale)
    alphas = (model.get("attention_logits_alpha", 1.0) != 1.0, model.get("output_logits_alpha"))
    if base is None and not any((*others, *alphas)):
        return None
    # Before release 2.3 the factors stood for themselves, without base sizes: then width 1 and the product as it is.
    return MuP(
        base_hidden_size=base or model["hidden_size"],
        base_ffn_size=model.get("mup_base_filter_size") or model["filter_size"],
        embeddings_scale=model.get("embeddings_scale", 1.0),
        output_alpha=scale if base is None and scale else model.get("output_logits_alpha", 1.0),
        attention_alpha=model.get("attention_logits_alpha", 1.0),
        scores_by_head_dim=bool(model.get("scale_qk_dot_by_d", False)),
        logits_by_width=model.get("scale_output_logits_by_d", True),
    )


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
        "nonlinearity": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation),
        "use_projection_bias_in_attention": config.qkv_bias,
        "use_ffn_bias_in_attention": config.attention_out_bias,
        "use_ffn_bias": config.mlp_bias,
        "use_bias_in_output": False,
        "dropout_rate": config.dropout,
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
