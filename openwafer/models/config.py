"""The one description of a decoder: which parts it is made of, their sizes, and how they are initialised.

Deliberately only what fixes the module: how it is trained (batch, learning rate) belongs to the recipe. The published
members of each family are in `families.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from openwafer.base.errors import ConfigError

Norm = Literal["layernorm", "rmsnorm"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "reglu"]
Scaling = Literal["linear", "dynamic", "yarn", "llama3"]

GATED: frozenset[Activation] = frozenset({"swiglu", "geglu", "reglu"})
"""Activations of a second projection that multiplies the first. Source: Shazeer, arXiv 2002.05202."""


@dataclass(frozen=True)
class Learned:
    """A trained vector for each position, added to the embedding. Source: Radford et al. 2019."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the positions that a model was trained with.

    Attributes:
        kind: linear (Chen et al., arXiv 2306.15595), dynamic (NTK-aware, by the length at hand), yarn (Peng et al.,
            arXiv 2309.00071) or llama3 (by wavelength, as in the released Llama 3.1 code).
        factor: by how much.
        original_positions: positions before the stretch; None for the decoder's max_positions.
        low_freq_factor: llama3: wavelengths above original_positions / low_freq_factor are stretched in full.
        high_freq_factor: llama3: those below original_positions / high_freq_factor are left alone.
        beta_fast: yarn: rotations in original_positions above which a frequency is left alone.
        beta_slow: yarn: rotations below which it is stretched in full.
        attention_factor: yarn: multiplies cosine and sine; None for 0.1 ln(factor) + 1 (arXiv 2309.00071, eq. 22).
        mscale: yarn: with mscale_all_dim, the ratio of two such factors instead (as in DeepSeek-V2's release).
        mscale_all_dim: see mscale.
        truncate: yarn: the borders between the three ranges are rounded to whole dimensions.
    """

    kind: Scaling
    factor: float
    original_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self):
        _one_of("positions.scaling.kind", self.kind, get_args(Scaling))
        if not self.factor >= 1.0:
            raise ConfigError(f"positions.scaling.factor is {self.factor}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys are rotated by their position. Source: Su et al., arXiv 2104.09864.

    Attributes:
        theta: base of the wavelengths.
        dim: how many dimensions of a head are rotated; None for all.
        scaling: for longer sequences than the model was trained with.
    """

    theta: float = 10000.0
    dim: int | None = None
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Attention scores fall with distance, by a fixed slope a head. Source: Press et al., arXiv 2108.12409.

    Attributes:
        factor: distances are divided by it, for longer sequences than the model was trained with.
        train_positions: where set, longer sequences are squeezed into so many positions instead.
    """

    factor: float = 1.0
    train_positions: int | None = None


Positions = Learned | Rotary | Alibi


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The MLP is replaced by several, of which a learned router picks `top_k` for each token.

    Attributes:
        num_experts: to choose from.
        top_k: chosen for each token; their probabilities are divided by their sum.
        num_shared: further ones that every token passes, with weight 1.
        balance_coefficient: weight of the load-balancing loss.
        null_probability: added to that sum, so that a token may lean on no expert (ModelZoo `null_expert_bias`).

    Source: Jiang et al., "Mixtral of Experts" (arXiv 2401.04088), section 2.1.
    """

    num_experts: int
    top_k: int
    num_shared: int = 0
    balance_coefficient: float = 0.0
    null_probability: float = 0.0

    def __post_init__(self):
        if self.num_experts < 1 or not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"experts.top_k is {self.top_k} of experts.num_experts {self.num_experts}; it must be from 1 to that"
            )
        if self.num_shared < 0 or self.balance_coefficient < 0 or self.null_probability < 0:
            raise ConfigError("experts: num_shared, balance_coefficient and null_probability must not be negative")


@dataclass(frozen=True, kw_only=True)
class MuP:
    """Maximal update parametrisation: factors that make the best settings of a narrow model those of a wide one.

    Attributes:
        base_hidden_size: width of the model whose settings are carried over; need not be whole.
        base_ffn_size: width of its MLP.
        embeddings_scale: multiplies the embeddings.
        output_alpha: multiplies the logits, beside base_hidden_size / hidden_size (its root where not logits_by_width).
        attention_alpha: multiplies the attention scores.
        scores_by_head_dim: scores are divided by head_dim, not its root.
        logits_by_width: see output_alpha.

    Source: Yang et al., arXiv 2203.03466, table 8; Dey et al., arXiv 2304.03208, appendix G; ModelZoo's names.
    """

    base_hidden_size: float
    base_ffn_size: float
    embeddings_scale: float = 1.0
    output_alpha: float = 1.0
    attention_alpha: float = 1.0
    scores_by_head_dim: bool = True
    logits_by_width: bool = True

    def __post_init__(self):
        for name in ("base_hidden_size", "base_ffn_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"mup.{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Parts, sizes and initialisation of a pre-norm decoder.

    What is left out is derived: num_kv_heads is num_heads, head_dim is hidden_size / num_heads, ffn_size is
    4 * hidden_size, and the standard deviations follow from init_std, the depth and muP (see `initializer.py`).

    Attributes:
        num_kv_heads: heads of keys and values, shared by groups of query heads (Ainslie et al., arXiv 2305.13245).
        max_positions: longest sequence; only learned positions end there.
        window: a token sees itself and the window - 1 before it (Jiang et al., arXiv 2310.06825); None for all.
        sink_tokens: with a window, the first so many are seen by all (Xiao et al., arXiv 2309.17453).
        qkv_bias: bias of the projections to query, key and value; likewise attention_out_bias and mlp_bias.
        layer_norm_eps: of either kind of norm.
        init_std: standard deviation of a matrix before depth and width come in.
        embedding_init_std: of the embeddings; None for init_std.
        hidden_init_std: of matrices that read the residual stream.
        output_init_std: of the attention's output, and of the MLP's where ffn_output_init_std is left out.

    Raises:
        ConfigError: sizes that are not positive or do not divide, or an unknown part.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = None  # pyright: ignore[reportAssignmentType]
    head_dim: int = None  # pyright: ignore[reportAssignmentType]
    ffn_size: int = None  # pyright: ignore[reportAssignmentType]
    vocab_size: int = 50257
    max_positions: int = 2048
    positions: Positions = field(default_factory=Learned)
    window: int | None = None
    sink_tokens: int = 0
    norm: Norm = "layernorm"
    layer_norm_eps: float = 1e-5
    activation: Activation = "gelu"
    experts: Experts | None = None
    qkv_bias: bool = True
    attention_out_bias: bool = True
    mlp_bias: bool = True
    dropout: float = 0.0
    tie_embeddings: bool = True
    mup: MuP | None = None
    init_std: float = 0.02
    embedding_init_std: float = None  # pyright: ignore[reportAssignmentType]
    hidden_init_std: float = None  # pyright: ignore[reportAssignmentType]
    output_init_std: float = None  # pyright: ignore[reportAssignmentType]
    ffn_output_init_std: float = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self):
        self._check_sizes("hidden_size", "num_layers", "num_heads", "vocab_size", "max_positions")
        for name, value in self._derived().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_sizes("num_kv_heads", "head_dim", "ffn_size")
        self._check()

    def resized(self, **changes) -> DecoderConfig:
        """The same decoder with some fields changed; what was derived from them is derived anew."""
        derived = self._derived()
        # The MLP's output followed the attention's before it was given a value of its own.
        again = {name: None for name, value in derived.items() if getattr(self, name) == value}
        return dataclasses.replace(self, **(again | changes))

    @property
    def width_scale(self) -> float:
        """muP: base width over width of the residual stream; 1 without muP."""
        return 1.0 if self.mup is None else self.mup.base_hidden_size / self.hidden_size

    @property
    def ffn_width_scale(self) -> float:
        """muP: base width over width of the MLP; 1 without muP."""
        return 1.0 if self.mup is None else self.mup.base_ffn_size / self.ffn_size

    @property
    def embeddings_scale(self) -> float:
        """What the embeddings are multiplied by."""
        return 1.0 if self.mup is None else self.mup.embeddings_scale

    @property
    def logits_scale(self) -> float:
        """What the logits are multiplied by."""
        if self.mup is None:
            return 1.0
        return self.mup.output_alpha * (self.width_scale if self.mup.logits_by_width else self.width_scale**0.5)

    @property
    def score_scale(self) -> float:
        """What query . key is multiplied by."""
        if self.mup is None:
            return self.head_dim**-0.5
        return self.mup.attention_alpha * self.head_dim ** (-1.0 if self.mup.scores_by_head_dim else -0.5)

    @property
    def position_limit(self) -> int | None:
        """Tokens that a sequence may have; None where positions do not end."""
        return self.max_positions if isinstance(self.positions, Learned) else None

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated; 0 for none."""
        if not isinstance(self.positions, Rotary):
            return 0
        return self.head_dim if self.positions.dim is None else self.positions.dim

    def _derived(self) -> dict[str, float]:
        """What a field that is left out becomes."""
        kv_heads = self.num_heads
        ffn_size = 4 * self.hidden_size
        width, ffn_width = 1.0, 1.0
        if self.mup is not None:
            width = self.mup.base_hidden_size / self.hidden_size
            ffn_width = self.mup.base_ffn_size / (self.ffn_size or ffn_size)
        depth = math.sqrt(2 * self.num_layers)
        # Each layer adds two outputs to the residual stream: 1/sqrt(2 num_layers) keeps its variance at bay
        # (Radford et al. 2019, section 2.3); muP adds the root of the width scale (arXiv 2203.03466, table 8).
        output = self.init_std * math.sqrt(width) / depth
        ffn_output = self.init_std * math.sqrt(ffn_width) / depth
        if self.output_init_std is not None and self.mup is None:
            ffn_output = self.output_init_std
        return {
            "num_kv_heads": kv_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "ffn_size": ffn_size,
            "embedding_init_std": self.init_std,
            "hidden_init_std": self.init_std * math.sqrt(width),
            "output_init_std": output,
            "ffn_output_init_std": ffn_output,
        }

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def _check(self) -> None:
        if self.head_dim * self.num_heads != self.hidden_size and self.hidden_size // self.num_heads == self.head_dim:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "choose sizes that divide"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}; "
                "choose sizes that divide"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window is {self.window}; it must be at least 1, or None for no window")
        _one_of("norm", self.norm, get_args(Norm))
        _one_of("activation", self.activation, get_args(Activation))
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ConfigError(
                f"positions.dim is {self.rotary_dim}; it must be even and at most head_dim {self.head_dim}"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def num_parameters(config: DecoderConfig) -> int:
    """Trainable parameters of `Decoder(config)`, a tied embedding counted once."""
    c = config
    d, f = c.hidden_size, c.ffn_size
    query, kv = c.num_heads * c.head_dim, 2 * c.num_kv_heads * c.head_dim
    attention = d * (query + kv) + query * d + c.qkv_bias * (query + kv) + c.attention_out_bias * d
    inputs = 2 if c.activation in GATED else 1
    mlp = (inputs + 1) * d * f + c.mlp_bias * (inputs * f + d)
    if c.experts is not None:
        mlp = (c.experts.num_experts + c.experts.num_shared) * mlp + c.experts.num_experts * d
    norm = 2 * d if c.norm == "layernorm" else d
    learned = c.max_positions if isinstance(c.positions, Learned) else 0
    head = 0 if c.tie_embeddings else c.vocab_size * d
    return (c.vocab_size + learned) * d + c.num_layers * (attention + mlp + 2 * norm) + norm + head
