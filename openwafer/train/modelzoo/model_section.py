"""The `model` section of a trainer file: the decoder models of ModelZoo 2.x, checked, defaults filled in.

`model_section` is a pure function from the section's keys to keyword arguments under ModelZoo's own names; it builds
nothing and knows none of our modules. What has no meaning here is left out and named, what we lack is refused by name.
Source of keys and defaults: ModelZoo 2.10, the documented configuration of its GPT-2 class, which GPT-3, BTLM, Jais,
Llama, Mistral and Mixtral share.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

NAMES = ("gpt2", "gpt3", "btlm", "jais", "llama", "mistral", "mixtral")
"""Models read here, in ModelZoo's names."""

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

NO_MEANING = {
    "attention_kernel": "names a kernel of the wafer",
    "attention_softmax_fp32": "the softmax of attention is computed in fp32 here",
    "boundary_casting": "an option of older releases",
    "fold_rope_consts": "concerns the wafer's compiler",
    "use_experimental_flex_api": "concerns the wafer's compiler",
    "compute_eval_metrics": "perplexity is exp(loss)",
    "mixed_precision": "the precision section decides",
    "fp16_type": "the precision section decides",
    "start_token": "inference only",
    "stop_sequences": "inference only",
    "max_tokens": "inference only",
    "loop_dim": "inference only",
    "temperature": "inference only",
    "top_k": "inference only",
    "top_p": "inference only",
    "num_relative_attention_buckets": "belongs to relative positions",
    "dtype": "the precision section decides",
}
"""Keys that are accepted and change nothing, with the reason."""

# Keys of features that are not built, with the values that leave the feature off.
_LACKING: Mapping[str, tuple[Any, ...]] = {
    "num_extra_input_vocab_tokens": (0,),
    "constant_pos_embedding": (None,),
    "position_embedding_offset": (0,),
    "embedding_layer_norm": (False,),
    "attention_vertical_column_spacing": (None,),
    "attention_vertical_column_width": (None,),
    "attention_chunk_size": (None,),
    "attention_qk_norm_layer": (None,),
    "attention_qk_norm_eps": (1e-5,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "fixed_sparse_attention": (None,),
    "memory_tokens": (None, {}),
    "use_sink_token": (False,),
    "use_bias_in_output": (False,),
    "alibi_trainable_slopes": (False,),
    "cross_attention_layers": ([], None),
    "extra_ffn_params": ({}, None),
    "rel_distance_mode": ("default",),
    "rel_distance_extra_args": (None,),
    "scale_qk_dot_by_layer_idx": (False,),
    "norm_first_sandwich": (False,),
    "sliding_window_every_other_decoder_layer": (False,),
    "sliding_window_every_other_decoder_layer_pattern": ("full_attention_first", None),
    "lr_adjustment_groups": (None,),
}


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Initializer(_Keys):
    """A normal distribution around 0, cut at two standard deviations: the one that the decoder draws from."""

    name: Literal["truncated_normal"]
    mean: Annotated[float, Field(ge=0, le=0)] = 0.0
    std: Annotated[float, Field(gt=0)] = 0.05
    a: float | None = None
    b: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> "Initializer":
        for name, bound, wanted in (("a", self.a, -2 * self.std), ("b", self.b, 2 * self.std)):
            if bound is not None and not math.isclose(bound, wanted, rel_tol=1e-3):
                raise ValueError(f"{name} is {bound}; a cut at two standard deviations, {wanted:g}, is built")
        return self


class MixtureOfExperts(_Keys):
    """The `moe` block; num_experts 0 or 1 is a dense model."""

    num_experts: Annotated[int, Field(ge=0)] = 0
    num_shared_experts: Annotated[int, Field(ge=0)] | None = None
    top_k: Count = 1
    load_balancing_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    null_expert_bias: float | None = 0.0
    router_use_bias: Literal[False] | None = False
    router_fp32: bool = True
    routing_algorithm: Literal["learned"] = "learned"
    router_selection_nonlinearity: Literal["softmax"] | None = "softmax"
    expert_weighting_nonlinearity: Literal["softmax"] | None = "softmax"
    expert_weighting_normalization: Literal[True] | None = True
    moe_implementation: str = "experimental"
    sinkhorn_n_iters: int | None = 1
    gate_initializer: Initializer | None = None
    probability_before_ffn: Literal[False] = False

    @model_validator(mode="after")
    def _enough(self) -> "MixtureOfExperts":
        if self.num_experts > 1 and self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, more than num_experts {self.num_experts}")
        return self


class AttentionExtras(_Keys):
    """Options of grouped-query attention."""

    num_kv_groups: Count | None = None


class ModelSection(_Keys):
    """Every key of a decoder that has a meaning here, with ModelZoo's defaults."""

    name: Literal["gpt2", "gpt3", "btlm", "jais", "llama", "mistral", "mixtral"]
    # embedding
    vocab_size: Count = 50257
    max_position_embeddings: Count = 1024
    hidden_size: Count = 768
    position_embedding_type: Literal["learned", "rotary", "alibi"] = "learned"
    share_embedding_weights: bool = True
    embedding_dropout_rate: Share | None = Field(
        default=None, validation_alias=AliasChoices("embedding_dropout_rate", "embd_pdrop")
    )
    rotary_dim: Annotated[int, Field(ge=2)] | None = None
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    pos_scaling_type: Literal["linear", "yarn", "llama3"] = "linear"
    pos_scaling_factor: Annotated[float, Field(gt=0)] = 1.0
    pos_scaling_extra_args: dict[str, Any] | None = None
    # layers
    num_hidden_layers: Count = 12
    dropout_rate: Share = 0.1
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    # attention
    num_heads: Count = 12
    attention_type: Literal["scaled_dot_product"] = "scaled_dot_product"
    attention_module: Literal["aiayn_attention", "multiquery_attention"] = "aiayn_attention"
    extra_attention_params: AttentionExtras = AttentionExtras()
    attention_inner_dim: Count | None = None
    attention_dropout_rate: Share | None = 0.1
    attention_sliding_window_length: Count | None = None
    attention_sink_tokens: Annotated[int, Field(ge=0)] | None = None
    use_projection_bias_in_attention: bool = True
    use_ffn_bias_in_attention: bool = True
    # feed-forward
    filter_size: Count = 3072
    nonlinearity: str = "gelu"
    use_ffn_bias: bool = True
    moe: MixtureOfExperts = Field(default_factory=MixtureOfExperts, validation_alias=AliasChoices("moe", "moe_params"))
    # initial weights
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    embedding_initializer: Initializer | None = None
    initializer: Initializer | None = None
    output_layer_initializer: Initializer | None = None
    ffn_initializer: Initializer | None = None
    ffn_output_layer_initializer: Initializer | None = None
    # muP
    mup_base_hidden_size: Annotated[float, Field(gt=0)] | None = None
    mup_base_filter_size: Annotated[float, Field(gt=0)] | None = None
    embeddings_scale: float = 1.0
    scale_qk_dot_by_d: bool | None = None
    attention_logits_alpha: float = 1.0
    scale_output_logits_by_d: bool = True
    output_logits_alpha: float | None = None
    output_logits_scale: float | None = None
    # loss
    loss_scaling: Literal["num_tokens", "batch_size"] = "num_tokens"
    loss_weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> "ModelSection":
        self._check_heads()
        self._check_positions()
        self._check_mup()
        self._check_single()
        if self.nonlinearity not in _ACTIVATIONS:
            raise ValueError(f"nonlinearity {self.nonlinearity!r} is not built; there are {', '.join(_ACTIVATIONS)}")
        if (self.attention_module == "multiquery_attention") != (self.extra_attention_params.num_kv_groups is not None):
            raise ValueError(
                "attention_module: multiquery_attention and extra_attention_params.num_kv_groups go together"
            )
        return self

    def _check_heads(self) -> None:
        if self.inner_size % self.num_heads:
            raise ValueError(f"the attention width {self.inner_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_groups {self.num_kv_heads}")

    def _check_positions(self) -> None:
        rotary = self.rotary_dim if self.position_embedding_type == "rotary" else None
        if rotary is not None and (rotary > self.head_dim or rotary % 2):
            raise ValueError(f"rotary_dim is {self.rotary_dim}; it must be even and at most {self.head_dim}")
        if self.position_embedding_type == "alibi" and self.pos_scaling_type != "linear":
            raise ValueError(f"ALiBi has pos_scaling_type linear only, got {self.pos_scaling_type}")

    def _check_mup(self) -> None:
        bases = (self.mup_base_hidden_size, self.mup_base_filter_size)
        if (bases[0] is None) != (bases[1] is None):
            raise ValueError("muP needs both mup_base_hidden_size and mup_base_filter_size")
        if bases[0] is not None and self.output_logits_scale is not None:
            raise ValueError(
                "output_logits_scale is muP in the style before 2.3; with mup_base_hidden_size leave it out"
            )

    def _check_single(self) -> None:
        rates = (self.dropout_rate, self.attention_dropout_rate, self.embedding_dropout_rate)
        if len({rate for rate in rates if rate is not None}) > 1:
            raise ValueError(
                f"dropout_rate {rates[0]}, attention_dropout_rate {rates[1]} and embedding_dropout_rate {rates[2]} "
                "differ; one rate for all three is built"
            )
        if self.ffn_initializer is not None and self.ffn_initializer.std != (self.initializer or self).std:
            raise ValueError("ffn_initializer differs from initializer; one for both is built")

    @property
    def std(self) -> float:
        """Standard deviation of what no initializer names."""
        return self.initializer_range

    @property
    def inner_size(self) -> int:
        """Width of all query heads together."""
        return self.attention_inner_dim or self.hidden_size

    @property
    def head_dim(self) -> int:
        return self.inner_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.extra_attention_params.num_kv_groups or self.num_heads

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer has a third matrix."""
        return self.nonlinearity in _GATED

    @property
    def width_ratio(self) -> float | None:
        """How many times wider than the muP base; None outside muP."""
        return None if self.mup_base_hidden_size is None else self.hidden_size / self.mup_base_hidden_size

    @property
    def learning_rate_scales(self) -> dict[str, float]:
        """muP's factors by ModelZoo's names of parameter groups; empty outside muP."""
        if self.mup_base_hidden_size is None or self.mup_base_filter_size is None:
            return {}
        by_width = self.mup_base_hidden_size / self.hidden_size
        by_filter = self.mup_base_filter_size / self.filter_size
        return {"decoder_attention": by_width, "decoder_input_ffn": by_width, "decoder_output_ffn": by_filter}


_GATED = ("swiglu", "geglu", "reglu")
_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "swish", *_GATED)

_DEPRECATED_NAMES = {"LlamaModel": "llama", "GPT2LMHeadModel": "gpt2"}


def model_section(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model that a trainer file describes, as keyword arguments under ModelZoo's names, and what was left out.

    Raises:
        ValueError: naming a key that is wrong, or a feature that is not built.
    """
    keys = dict(tree)
    keys["name"] = _DEPRECATED_NAMES.get(keys.get("name", ""), keys.get("name"))
    notes = []
    for key, reason in NO_MEANING.items():
        if keys.pop(key, None) is not None:
            notes.append(f"model.{key}: {reason}")
    for key, off in _LACKING.items():
        if key in keys and (value := keys.pop(key)) not in off:
            raise ValueError(f"{key}: {str(value)[:40]} is not built here; leave it out or set {off[0]}")
    if isinstance(keys.get("pos_scaling_type"), str):
        keys["pos_scaling_type"] = keys["pos_scaling_type"].lower()
    return filled(ModelSection.model_validate(keys)), notes


def filled(section: ModelSection) -> dict[str, Any]:
    """The section as a plain dict, with the defaults that follow from other keys."""
    values = section.model_dump()
    values["embedding_dropout_rate"] = _or(section.embedding_dropout_rate, section.dropout_rate)
    values["attention_dropout_rate"] = _or(section.attention_dropout_rate, section.dropout_rate)
    values["scale_qk_dot_by_d"] = _or(section.scale_qk_dot_by_d, section.mup_base_hidden_size is not None)
    if section.position_embedding_type == "rotary" and section.rotary_dim is None:
        values["rotary_dim"] = int(section.head_dim * 0.25)  # ModelZoo's own default
    if section.loss_scaling == "num_tokens":
        values["loss_weight"] = 1.0
    return values


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def num_parameters(section: ModelSection) -> int:
    """Trainable parameters of the model, tied embeddings counted once."""
    d = section.hidden_size
    learned = section.max_position_embeddings if section.position_embedding_type == "learned" else 0
    embeddings = (section.vocab_size * (1 if section.share_embedding_weights else 2) + learned) * d
    norm = 2 * d if section.norm_type == "layernorm" else d
    return embeddings + norm + section.num_hidden_layers * layer_parameters(section)


def layer_parameters(section: ModelSection) -> int:
    """Trainable parameters of one layer."""
    d, inner, kv = section.hidden_size, section.inner_size, section.num_kv_heads * section.head_dim
    attention = d * (inner + 2 * kv) + inner * d
    attention += (inner + 2 * kv) * section.use_projection_bias_in_attention + d * section.use_ffn_bias_in_attention
    norms = 2 * (2 * d if section.norm_type == "layernorm" else d)
    moe = section.moe
    experts = moe.num_experts + (moe.num_shared_experts or 0)
    if experts <= 1:
        return attention + norms + _ffn_parameters(section)
    router = d * moe.num_experts + (moe.num_experts if moe.router_use_bias else 0)
    return attention + norms + experts * _ffn_parameters(section) + router


def active_parameters(section: ModelSection) -> int:
    """Parameters that one token meets: of the experts, the chosen and the shared ones."""
    moe = section.moe
    idle = max(0, moe.num_experts - moe.top_k) if moe.num_experts > 1 else 0
    return num_parameters(section) - idle * section.num_hidden_layers * _ffn_parameters(section)


def _ffn_parameters(section: ModelSection) -> int:
    d, f = section.hidden_size, section.filter_size
    inputs = 2 if section.is_gated else 1
    biases = (inputs * f + d) if section.use_ffn_bias else 0
    return (inputs + 1) * d * f + biases
