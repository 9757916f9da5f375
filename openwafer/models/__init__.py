"""Ordinary single-device torch modules; they do not know that they are streamed."""

from openwafer.models.attention import Attention, document_ids
from openwafer.models.cache import KVCache, LayerCache
from openwafer.models.config import (
    Alibi,
    DecoderConfig,
    Experts,
    Learned,
    MuP,
    RopeScaling,
    Rotary,
    num_parameters,
)
from openwafer.models.decoder import Block, Decoder
from openwafer.models.experts import MixtureOfExperts, balance_loss
from openwafer.models.families import (
    BTLM,
    CEREBRAS_GPT,
    CEREBRAS_GPT_MUP,
    FAMILIES,
    JAIS,
    LLAMA,
    MISTRAL,
    MIXTRAL,
)
from openwafer.models.generate import generate, sample
from openwafer.models.lm_head import IGNORE_INDEX, LMHead, linear_cross_entropy
from openwafer.models.mlp import MLP
from openwafer.models.mup import learning_rate_scale

__all__ = [
    "BTLM",
    "CEREBRAS_GPT",
    "CEREBRAS_GPT_MUP",
    "FAMILIES",
    "IGNORE_INDEX",
    "JAIS",
    "LLAMA",
    "MISTRAL",
    "MIXTRAL",
    "MLP",
    "Alibi",
    "Attention",
    "Block",
    "Decoder",
    "DecoderConfig",
    "Experts",
    "KVCache",
    "LMHead",
    "LayerCache",
    "Learned",
    "MixtureOfExperts",
    "MuP",
    "RopeScaling",
    "Rotary",
    "balance_loss",
    "document_ids",
    "generate",
    "learning_rate_scale",
    "linear_cross_entropy",
    "num_parameters",
    "sample",
]
