"""The `model` section of a ModelZoo 2.x YAML: the keys of its decoder models, checked, defaults filled in.

It builds nothing; what decoder a section describes is `modelzoo_config`'s. What has no meaning here is left out and
named, what we lack is refused by name.
Source of keys and defaults: ModelZoo 2.10, the documented configuration of its GPT-2 class, which GPT-3, BTLM, Jais,
Llama, Mistral and Mixtral share.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from openwafer.models.config import Activation

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "swiglu",
    "geglu": "geglu",
    "reglu": "reglu",
}
"""Our activations by ModelZoo's names."""

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


class PositionExtras(_Keys):
    """Options of llama3 and yarn; source of the defaults: ModelZoo 2.10, documentation of pos_scaling_type."""

    original_max_position_embeddings: Count | None = None
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    mscale_a: float = 0.1
    mscale_b: float = 1.0
    extrapolation_factor: Annotated[float, Field(ge=1, le=1)] = 1.0
    truncate: bool = True


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
    pos_scaling_factor: Annotated[float, Field(ge=1)] = 1.0
    pos_scaling_extra_args: PositionExtras | None = None
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
        if self.nonlinearity not in ACTIVATIONS:
            raise ValueError(f"nonlinearity {self.nonlinearity!r} is not built; there are {', '.join(ACTIVATIONS)}")
        return self

    def _check_heads(self) -> None:
        if self.inner_size % self.num_heads:
            raise ValueError(f"the attention width {self.inner_size} is not a multiple of num_heads {self.num_heads}")
        groups = self.extra_attention_params.num_kv_groups
        if groups is not None and self.attention_module != "multiquery_attention":
            raise ValueError("extra_attention_params.num_kv_groups needs attention_module: multiquery_attention")
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
        """Width of one head."""
        return self.inner_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        if self.attention_module != "multiquery_attention":
            return self.num_heads
        return self.extra_attention_params.num_kv_groups or 1


_DEPRECATED_NAMES = {"LlamaModel": "llama", "GPT2LMHeadModel": "gpt2"}

_TRAINING_ONLY = (
    "initializer_range",
    "embedding_initializer",
    "initializer",
    "output_layer_initializer",
    "ffn_initializer",
    "ffn_output_layer_initializer",
    "lr_adjustment_groups",
    "embedding_dropout_rate",
    "embd_pdrop",
    "attention_dropout_rate",
    "loss_scaling",
    "loss_weight",
)


def model_section(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model that a trainer file describes, as keyword arguments under ModelZoo's names, and what was left out.

    Raises:
        ValueError: naming a key that is wrong, or a feature that is not built.
    """
    keys = dict(tree)
    name = str(keys.get("name", ""))
    keys["name"] = _DEPRECATED_NAMES.get(name, name.lower())
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


def checkpoint_section(tree: Mapping[str, Any]) -> ModelSection:
    """The section that a checkpoint carries; how its weights were drawn and trained is left out.

    Raises:
        ValueError: in words, naming the first key that is wrong, or a feature that is not built.
    """
    keys = {key: value for key, value in tree.items() if value is not None and key not in _TRAINING_ONLY}
    keys.setdefault("name", "gpt2")
    keys["attention_dropout_rate"] = keys.get("dropout_rate")
    try:
        return ModelSection.model_validate(model_section(keys)[0])
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(["model", *map(str, fault["loc"])])
        reason = str(fault.get("ctx", {}).get("error", fault["msg"])).removeprefix("Input ")
        raise ValueError(f"{where} is {repr(fault['input'])[:60]}: {reason}" if fault["loc"] else reason) from error


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
