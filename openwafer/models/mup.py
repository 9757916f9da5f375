"""muP at training time: what the learning rate of each parameter is multiplied by.

The other two parts of muP are elsewhere: initial values in `initializer.py`, factors of the forward pass as properties
of `DecoderConfig`. Source: Yang et al., arXiv 2203.03466, table 8 (Adam); Dey et al., arXiv 2304.03208, appendix G;
which parameters belong together: ModelZoo's `lr_adjustment_groups`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from openwafer.models.config import DecoderConfig

_BY_WIDTH = ("*attn.qkv.weight", "*attn.out.weight", "*mlp*.up.weight", "*mlp*.gate.weight")
_BY_FFN_WIDTH = ("*mlp*.down.weight",)


def learning_rate_scale(name: str, config: DecoderConfig) -> float:
    """What the learning rate of the decoder's parameter `name` is multiplied by; 1 without muP.

    Embeddings, norms, biases and the router learn at the full rate; a matrix at 1 / (its inputs over the base model's).
    """
    if any(fnmatchcase(name, pattern) for pattern in _BY_WIDTH):
        return config.width_scale
    if any(fnmatchcase(name, pattern) for pattern in _BY_FFN_WIDTH):
        return config.ffn_width_scale
    return 1.0
