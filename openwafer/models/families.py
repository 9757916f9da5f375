"""The published members of each family, as decoder shapes.

Sources: Cerebras-GPT: Dey et al., arXiv 2304.03208, table 1 and appendix G; BTLM-3B-8K: Dey et al., arXiv 2309.11568;
Jais: Sengupta et al., arXiv 2308.16149; Llama 2: arXiv 2307.09288; Code Llama: arXiv 2308.12950; Llama 3.1: arXiv
2407.21783; Mistral: arXiv 2310.06825; Mixtral: arXiv 2401.04088. Numbers as in the ModelZoo 2.10 configs of each.
"""

from __future__ import annotations

from openwafer.models.config import Alibi, DecoderConfig, Experts, MuP, RopeScaling, Rotary

CEREBRAS_GPT: dict[str, DecoderConfig] = {
    "111m": DecoderConfig(num_layers=10, hidden_size=768, num_heads=12),
    "256m": DecoderConfig(num_layers=14, hidden_size=1088, num_heads=17),
    "590m": DecoderConfig(num_layers=18, hidden_size=1536, num_heads=12),
    # The published config writes 0.0025, not the family's 0.02 / sqrt(2 * 24) = 0.00289; so does that of the 13B,
    # where the formula gives 0.00224.
    "1.3b": DecoderConfig(num_layers=24, hidden_size=2048, num_heads=16, output_init_std=0.0025),
    "2.7b": DecoderConfig(num_layers=32, hidden_size=2560, num_heads=32),
    "6.7b": DecoderConfig(num_layers=32, hidden_size=4096, num_heads=32),
    "13b": DecoderConfig(num_layers=40, hidden_size=5120, num_heads=40, output_init_std=0.0025),
}
"""Cerebras-GPT by size. Source: arXiv 2304.03208, table 1; initialisation: ModelZoo configs."""

_CEREBRAS_GPT_MUP = MuP(base_hidden_size=256, base_ffn_size=1024, embeddings_scale=10.0)

CEREBRAS_GPT_MUP: dict[str, DecoderConfig] = {
    size: CEREBRAS_GPT[size].resized(mup=_CEREBRAS_GPT_MUP, init_std=0.08, output_init_std=None)
    for size in ("111m", "256m", "590m", "1.3b", "2.7b")
}
"""The muP variants. Source: arXiv 2304.03208, appendix G; ModelZoo configs `*_mup.yaml`."""


def _btlm(base_ffn_size: float, **sizes) -> DecoderConfig:
    mup = MuP(base_hidden_size=256, base_ffn_size=base_ffn_size, embeddings_scale=14.6, output_alpha=2.22)
    return DecoderConfig(positions=Alibi(), activation="swiglu", mup=mup, init_std=0.073, **sizes)


BTLM: dict[str, DecoderConfig] = {
    "3b-8k": _btlm(682.6, num_layers=32, hidden_size=2560, num_heads=32, ffn_size=6826, max_positions=8192),
}
"""BTLM-3B-8K: 2,646,255,744 parameters. Source of the sizes: ModelZoo `params_btlm_2p7b_8k.yaml`; arXiv 2309.11568."""

JAIS: dict[str, DecoderConfig] = {
    "13b": _btlm(682.65, num_layers=40, hidden_size=5120, num_heads=40, ffn_size=13653, vocab_size=84992),
    "30b": _btlm(
        682.6428571,
        num_layers=48,
        hidden_size=7168,
        num_heads=56,
        ffn_size=19114,
        vocab_size=84992,
        max_positions=8192,
    ),
}
"""Jais by size. Source: arXiv 2308.16149; ModelZoo configs."""


def _llama(**parts) -> DecoderConfig:
    """RMSNorm, rotary positions, SwiGLU, no biases. Source: Touvron et al., arXiv 2302.13971, section 2.2."""
    defaults = {
        "positions": Rotary(),
        "norm": "rmsnorm",
        "activation": "swiglu",
        "qkv_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
        "tie_embeddings": False,
        "vocab_size": 32000,
        "max_positions": 4096,
    }
    return DecoderConfig(**(defaults | parts))


def _llama_3(stretch: float, **parts) -> DecoderConfig:
    scaling = RopeScaling(kind="llama3", factor=stretch, original_positions=8192)
    positions = Rotary(theta=500000.0, scaling=scaling)
    return _llama(positions=positions, vocab_size=128256, max_positions=131072, **parts)


_SIZE_7B = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "ffn_size": 11008}
_SIZE_8B = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8, "ffn_size": 14336}
_SIZE_13B = {"num_layers": 40, "hidden_size": 5120, "num_heads": 40, "ffn_size": 13824}
_SIZE_70B = {"num_layers": 80, "hidden_size": 8192, "num_heads": 64, "num_kv_heads": 8, "ffn_size": 28672}
_SIZE_405B = {"num_layers": 126, "hidden_size": 16384, "num_heads": 128, "num_kv_heads": 8, "ffn_size": 53248}
_SIZE_1B = {"num_layers": 16, "hidden_size": 2048, "num_heads": 32, "num_kv_heads": 8, "ffn_size": 8192}
_SIZE_3B = {"num_layers": 28, "hidden_size": 3072, "num_heads": 24, "num_kv_heads": 8, "ffn_size": 8192}
_CODE = {"positions": Rotary(theta=1e6), "max_positions": 16384, "vocab_size": 32016}

LLAMA: dict[str, DecoderConfig] = {
    "2-7b": _llama(**_SIZE_7B),
    "2-13b": _llama(**_SIZE_13B),
    "2-70b": _llama(**_SIZE_70B),
    "code-7b": _llama(**_SIZE_7B, **_CODE),
    "code-70b": _llama(**_SIZE_70B, **_CODE),
    "3.1-8b": _llama_3(8.0, **_SIZE_8B),
    "3.1-70b": _llama_3(8.0, **_SIZE_70B),
    "3.1-405b": _llama_3(8.0, **_SIZE_405B),
    "3.2-1b": _llama_3(32.0, tie_embeddings=True, **_SIZE_1B),
    "3.2-3b": _llama_3(32.0, tie_embeddings=True, **_SIZE_3B),
}
"""Llama by release and size. Source: the papers above; 3.2: the released configs."""

MISTRAL: dict[str, DecoderConfig] = {
    "7b": _llama(**_SIZE_8B, window=4096, max_positions=32768),
    "nemo-12b": _llama(
        num_layers=40,
        hidden_size=5120,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_size=14336,
        vocab_size=131072,
        max_positions=131072,
        positions=Rotary(theta=1e6),
    ),
}
"""Mistral by size. Source: arXiv 2310.06825, table 1; Nemo: the released config."""

MIXTRAL: dict[str, DecoderConfig] = {
    "8x7b": _llama(
        **_SIZE_8B,
        positions=Rotary(theta=1e6),
        max_positions=32768,
        experts=Experts(num_experts=8, top_k=2, balance_coefficient=0.02),
    ),
    "8x22b": _llama(
        num_layers=56,
        hidden_size=6144,
        num_heads=48,
        num_kv_heads=8,
        ffn_size=16384,
        positions=Rotary(theta=1e6),
        max_positions=65536,
        experts=Experts(num_experts=8, top_k=2, balance_coefficient=0.001),
    ),
}
"""Mixtral by size. Source: arXiv 2401.04088, table 1; 8x22b and the coefficients: the released configs, ModelZoo."""

FAMILIES: dict[str, DecoderConfig] = {
    f"{family}-{size}": config
    for family, members in (
        ("cerebras-gpt", CEREBRAS_GPT),
        ("btlm", BTLM),
        ("jais", JAIS),
        ("llama", LLAMA),
        ("mistral", MISTRAL),
        ("mixtral", MIXTRAL),
    )
    for size, config in members.items()
} | {f"cerebras-gpt-{size}-mup": config for size, config in CEREBRAS_GPT_MUP.items()}
"""Every member by its full name, such as `cerebras-gpt-111m-mup` or `llama-3.1-8b`."""
