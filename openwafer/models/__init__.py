"""Ordinary single-device torch modules; they do not know that they are streamed."""

from openwafer.models.cache import KVCache, LayerCache
from openwafer.models.config import CEREBRAS_GPT, DecoderConfig, num_parameters
from openwafer.models.decoder import MLP, Attention, Block, Decoder
from openwafer.models.generate import generate, sample
from openwafer.models.lm_head import IGNORE_INDEX, LMHead, linear_cross_entropy

__all__ = [
    "CEREBRAS_GPT",
    "IGNORE_INDEX",
    "MLP",
    "Attention",
    "Block",
    "Decoder",
    "DecoderConfig",
    "KVCache",
    "LMHead",
    "LayerCache",
    "generate",
    "linear_cross_entropy",
    "num_parameters",
    "sample",
]
