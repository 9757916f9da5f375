"""Hugging Face's `config.json` and our `DecoderConfig`, both ways.

A key that changes what the model computes is either understood or refused by name. Keys that do not (token ids, names)
are notes, and travel along. Facts: the configuration files in `transformers` and those beside the published BTLM and
Jais.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openwafer.base.errors import CheckpointError, ConfigError
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
)

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "swiglu",
}
_NOTES = {
    "gpt2": {"initializer_range", "summary_type", "use_cache", "n_ctx", "task_specific_params"},
    "llama": {"initializer_range", "use_cache", "pretraining_tp"},
}
"""Keys that say nothing about the forward pass, beside those that every family has."""
_NOTES_OF_ALL = {
    "architectures",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "output_router_logits",
}
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")


class _Keys:
    """A config.json of which every key must be looked at."""

    def __init__(self, value: Mapping[str, Any], source: str):
        self._left = dict(value)
        self._source = source

    def take(self, name: str, *default: Any) -> Any:
        if name in self._left:
            value = self._left.pop(name)
            if value is not None or not default:
                return value
        if default:
            return default[0]
        raise CheckpointError(f"{self._source} has no {name}")

    def number(self, name: str, *default: Any) -> Any:
        value = self.take(name, *default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise CheckpointError(f"{self._source}: {name} is {value!r}; it must be a number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self._source}: {name} is {value!r}; it must be true or false")
        return value

    def count(self, name: str, *default: Any) -> Any:
        value = self.number(name, *default)
        if value is not None and (not isinstance(value, int) or not 0 < value < 1 << 40):
            raise CheckpointError(f"{self._source}: {name} is {value!r}; it must be a whole number above 0")
        return value

    def require(self, name: str, *allowed: Any) -> None:
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{self._source}: {name} is {value!r}, which is not built here; "
                f"models with {' or '.join(repr(a) for a in allowed)} are read"
            )

    def rest(self, notes: set[str]) -> dict[str, Any]:
        """What is left, all of it notes."""
        unknown = sorted(set(self._left) - notes - _NOTES_OF_ALL)
        # Transformers writes every generation default into older configs; None, False and empty change nothing.
        unknown = [name for name in unknown if self._left[name] not in (None, False, [], {})]
        if unknown:
            raise CheckpointError(
                f"{self._source}: {', '.join(unknown)} may change what the model computes and is not known here; "
                "remove the key from config.json if it does not"
            )
        return {name: self._left[name] for name in _KEPT if self._left.get(name) is not None}


def from_hugging_face(value: Mapping[str, Any], source: str) -> tuple[DecoderConfig, dict[str, Any]]:
    """The decoder that a config.json describes, and its notes.

    Raises:
        CheckpointError: a family or a key that is not known, or values that make no decoder.
    """
    kind = value.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(f"{source}: model_type is {kind!r}; {', '.join(KINDS)} are read")
    keys = _Keys(value, source)
    keys.take("model_type")
    try:
        return KINDS[kind].read(keys)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{source} does not describe a model: {error}") from error


def to_hugging_face(config: DecoderConfig, kind: str | None, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a decoder.

    Args:
        kind: model_type, or None for the one that fits.
        notes: keys that are copied.

    Raises:
        ConfigError: the family cannot express the decoder.
    """
    kind = kind or kind_of(config)
    if kind not in KINDS:
        raise ConfigError(f"the model_type is {kind!r}; it must be one of {', '.join(KINDS)}")
    value = {"model_type": kind, **KINDS[kind].write(config, kind), **notes}
    again, _ = from_hugging_face(value, "config.json")
    lost = [name for name in _SHAPE if getattr(again, name) != getattr(config, name)]
    if lost:
        differences = ", ".join(f"{name} ({getattr(config, name)})" for name in lost)
        raise ConfigError(f"Hugging Face's {kind} cannot express this model's {differences}")
    return value


def kind_of(config: DecoderConfig) -> str:
    """The model_type that a decoder is written as unless asked otherwise."""
    if config.norm == "rmsnorm":
        if config.experts is not None:
            return "mixtral"
        return "llama" if config.window is None else "mistral"
    if isinstance(config.positions, Alibi) or config.mup is not None:
        return "jais" if config.vocab_size == 84992 else "btlm"
    return "gpt2"


_SHAPE = (
    "hidden_size num_layers num_heads num_kv_heads head_dim ffn_size vocab_size max_positions positions window "
    "sink_tokens norm layer_norm_eps activation experts qkv_bias attention_out_bias mlp_bias tie_embeddings "
    "width_scale embeddings_scale logits_scale score_scale mup"
).split()


# --- GPT-2, BTLM, Jais ---------------------------------------------------------------------------------------------


def _read_gpt2(keys: _Keys) -> tuple[DecoderConfig, dict[str, Any]]:
    keys.require("scale_attn_weights", True)
    keys.require("scale_attn_by_inverse_layer_idx", False)
    keys.require("add_cross_attention", False)
    keys.take("reorder_and_upcast_attn", False)
    return _gpt2_shape(keys, Learned(), None, keys.take("activation_function", "gelu_new"))


def _read_btlm(keys: _Keys) -> tuple[DecoderConfig, dict[str, Any]]:
    keys.require("scale_attn_weights", True)
    keys.require("scale_attn_by_inverse_layer_idx", False)
    keys.require("add_cross_attention", False)
    keys.take("reorder_and_upcast_attn", False)
    positions: Positions = Learned()
    kind = keys.take("position_embedding_type", "learned")
    if kind == "alibi":
        scaling = keys.take("alibi_scaling", {})
        if not set(scaling) <= {"type", "factor", "train_seq_len"} or scaling.get("type", "linear") != "linear":
            raise ConfigError(f"alibi_scaling is {scaling!r}; type linear with factor or train_seq_len is read")
        positions = Alibi(factor=scaling.get("factor") or 1.0, train_positions=scaling.get("train_seq_len"))
    elif kind != "learned":
        raise ConfigError(f"position_embedding_type is {kind!r}; learned and alibi are read")
    hidden, ffn = keys.count("n_embd"), keys.count("n_inner", None)
    width = keys.number("mup_width_scale", 1.0)
    mup = MuP(
        base_hidden_size=keys.number("mup_base_hidden_size", hidden * width),
        base_ffn_size=keys.number("mup_base_filter_size", (ffn or 4 * hidden) * width),
        embeddings_scale=keys.number("mup_embeddings_scale", 1.0),
        output_alpha=keys.number("mup_output_alpha", 1.0),
        scores_by_head_dim=keys.flag("mup_scale_qk_dot_by_d", False),
    )
    return _gpt2_shape(keys, positions, mup, keys.take("activation_function", "gelu"), hidden, ffn)


def _gpt2_shape(
    keys: _Keys,
    positions: Positions,
    mup: MuP | None,
    activation: str,
    hidden: int | None = None,
    ffn: int | None = None,
) -> tuple[DecoderConfig, dict[str, Any]]:
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"activation_function is {activation!r}; {', '.join(_ACTIVATIONS)} are read")
    dropout = keys.number("resid_pdrop", 0.1)
    for other in ("embd_pdrop", "attn_pdrop"):
        keys.number(other, 0.1)
    width: int = hidden or keys.count("n_embd", 768)
    config = DecoderConfig(
        hidden_size=width,
        num_layers=keys.count("n_layer", 12),
        num_heads=keys.count("n_head", 12),
        ffn_size=ffn or keys.count("n_inner", None),
        vocab_size=keys.count("vocab_size", 50257),
        max_positions=keys.count("n_positions", 1024),
        positions=positions,
        layer_norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        activation=_ACTIVATIONS[activation],
        dropout=dropout,
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        mup=mup,
    )
    notes = {"summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"}
    return config, keys.rest(_NOTES["gpt2"] | notes)


def _write_gpt2(config: DecoderConfig, kind: str) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_size,
        "activation_function": names.get(config.activation, config.activation),
        "layer_norm_epsilon": config.layer_norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
    }


_REMOTE = {
    "btlm": ("BTLM", "cerebras/btlm-3b-8k-base--{}_btlm.{}"),
    "jais": ("JAIS", "inceptionai/jais-30b-v3--{}_jais.{}"),
}
"""Where transformers finds the code of a family that is not its own. Source: the published configs."""


def _write_btlm(config: DecoderConfig, kind: str) -> dict[str, Any]:
    mup = config.mup or MuP(
        base_hidden_size=config.hidden_size, base_ffn_size=config.ffn_size, scores_by_head_dim=False
    )
    scaling = None
    if isinstance(config.positions, Alibi) and config.positions != Alibi():
        scaling = {"type": "linear", "factor": config.positions.factor}
        if config.positions.train_positions is not None:
            scaling = {"type": "linear", "train_seq_len": config.positions.train_positions}
    prefix, where = _REMOTE[kind]
    return {
        **_write_gpt2(config, kind),
        "architectures": [f"{prefix}LMHeadModel"],
        "auto_map": {
            "AutoConfig": where.format("configuration", f"{prefix}Config"),
            "AutoModel": where.format("modeling", f"{prefix}Model"),
            "AutoModelForCausalLM": where.format("modeling", f"{prefix}LMHeadModel"),
        },
        "position_embedding_type": "alibi" if isinstance(config.positions, Alibi) else "learned",
        "alibi_scaling": scaling,
        "mup_width_scale": config.width_scale,
        "mup_base_hidden_size": mup.base_hidden_size,
        "mup_base_filter_size": mup.base_ffn_size,
        "mup_embeddings_scale": mup.embeddings_scale,
        "mup_output_alpha": mup.output_alpha,
        "mup_scale_qk_dot_by_d": mup.scores_by_head_dim,
    }


# --- Llama, Mistral, Mixtral ---------------------------------------------------------------------------------------


def _read_llama(keys: _Keys) -> tuple[DecoderConfig, dict[str, Any]]:
    bias, mlp_bias = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    keys.require("hidden_act", "silu", "swish")
    return _llama_shape(keys, 2048, 10000.0, bias, mlp_bias)


def _read_mistral(keys: _Keys) -> tuple[DecoderConfig, dict[str, Any]]:
    window = keys.count("sliding_window", None)
    keys.require("hidden_act", "silu", "swish")
    return _llama_shape(keys, 131072, 10000.0, window=window)


def _read_mixtral(keys: _Keys) -> tuple[DecoderConfig, dict[str, Any]]:
    window = keys.count("sliding_window", None)
    keys.require("hidden_act", "silu", "swish")
    keys.require("router_jitter_noise", 0.0)
    experts = Experts(
        num_experts=keys.count("num_local_experts", 8),
        top_k=keys.count("num_experts_per_tok", 2),
        balance_coefficient=keys.number("router_aux_loss_coef", 0.001),
    )
    return _llama_shape(keys, 131072, 1e6, window=window, experts=experts)


def _llama_shape(
    keys: _Keys,
    max_positions: int,
    theta: float,
    bias: bool = False,
    mlp_bias: bool = False,
    window: int | None = None,
    experts: Experts | None = None,
) -> tuple[DecoderConfig, dict[str, Any]]:
    heads = keys.count("num_attention_heads", 32)
    config = DecoderConfig(
        hidden_size=keys.count("hidden_size", 4096),
        num_layers=keys.count("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=keys.count("num_key_value_heads", heads),
        head_dim=keys.count("head_dim", None),
        ffn_size=keys.count("intermediate_size", 11008),
        vocab_size=keys.count("vocab_size", 32000),
        max_positions=keys.count("max_position_embeddings", max_positions),
        positions=_read_rotary(keys, theta),
        window=window,
        norm="rmsnorm",
        layer_norm_eps=keys.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        experts=experts,
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=mlp_bias,
        dropout=keys.number("attention_dropout", 0.0),
        tie_embeddings=keys.flag("tie_word_embeddings", False),
    )
    return config, keys.rest(_NOTES["llama"])


_ROPE_FIELDS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}


def _read_rotary(keys: _Keys, theta: float) -> Rotary:
    """Rotary positions, from the keys of transformers 5 (rope_parameters) or of those before it."""
    old = dict(keys.take("rope_scaling", {}))
    value = dict(keys.take("rope_parameters", {})) or old
    theta = value.pop("rope_theta", None) or keys.number("rope_theta", theta)
    keys.number("rope_theta", None)
    kind = value.pop("rope_type", value.pop("type", "default"))
    value.pop("type", None)
    if value.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor is not 1; only whole heads are rotated in these families")
    if kind == "default":
        return Rotary(theta=theta)
    unknown = set(value) - set(_ROPE_FIELDS)
    if unknown:
        raise ConfigError(f"rope_scaling has {', '.join(sorted(unknown))}, which is not known here")
    given = {_ROPE_FIELDS[name]: part for name, part in value.items() if part is not None}
    return Rotary(theta=theta, scaling=RopeScaling(kind=kind, **given))


def _write_llama(config: DecoderConfig, kind: str) -> dict[str, Any]:
    if not isinstance(config.positions, Rotary):
        raise ConfigError(f"Hugging Face's {kind} has rotary positions only")
    value: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.layer_norm_eps,
        "rope_theta": config.positions.theta,
        "rope_scaling": _write_scaling(config.positions.scaling),
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
    }
    if kind == "llama":
        value |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    else:
        value["sliding_window"] = config.window
    if config.experts is not None:
        value |= {
            "num_local_experts": config.experts.num_experts,
            "num_experts_per_tok": config.experts.top_k,
            "router_aux_loss_coef": config.experts.balance_coefficient,
        }
    return value


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    used = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    }.get(scaling.kind, ())
    names = ("factor", "original_max_position_embeddings", *used)
    given = {name: getattr(scaling, _ROPE_FIELDS[name]) for name in names}
    return {"rope_type": scaling.kind, **{name: part for name, part in given.items() if part is not None}}


@dataclass(frozen=True)
class Kind:
    """How a model_type is read and written."""

    read: Callable[[_Keys], tuple[DecoderConfig, dict[str, Any]]]
    write: Callable[[DecoderConfig, str], dict[str, Any]]


KINDS: dict[str, Kind] = {
    "gpt2": Kind(_read_gpt2, _write_gpt2),
    "btlm": Kind(_read_btlm, _write_btlm),
    "jais": Kind(_read_btlm, _write_btlm),
    "llama": Kind(_read_llama, _write_llama),
    "mistral": Kind(_read_mistral, _write_llama),
    "mixtral": Kind(_read_mixtral, _write_llama),
}
"""Every model_type that is read and written."""
