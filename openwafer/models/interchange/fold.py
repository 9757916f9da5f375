"""muP's factors folded into the weights, so that a plain GPT-2 computes the same.

The embedding takes its factor; the last norm takes the logits' factor over the embedding's, because the output is tied
to the embedding; the query takes what the scores have beside 1 / sqrt(head_dim). Equal up to rounding, and one way: the
factors are gone. Only for learned positions and tied embeddings, which is what Cerebras-GPT's muP variants have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from torch import Tensor

from openwafer.base.errors import ConfigError
from openwafer.models.config import Learned
from openwafer.models.interchange.checkpoint import Checkpoint


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without muP.

    Raises:
        ConfigError: its positions are not learned.
    """
    config = checkpoint.config
    if not isinstance(config.positions, Learned):
        raise ConfigError("only a model with learned positions can be written as gpt2; write this one as btlm")
    plain = dataclasses.replace(config, mup=None)
    norm = config.logits_scale / (config.embeddings_scale if config.tie_embeddings else 1.0)
    query = config.score_scale * math.sqrt(config.head_dim)
    factors = {"wte.weight": config.embeddings_scale, "wpe.weight": config.embeddings_scale}
    factors |= {"ln_f.weight": norm, "ln_f.bias": norm}
    width = config.num_heads * config.head_dim

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.tensors():
            if ".attn.qkv." in name:
                tensor = tensor.clone()
                tensor[:width] *= query
            elif name in factors:
                tensor = tensor * factors[name]
            yield name, tensor

    return dataclasses.replace(checkpoint, config=plain, tensors=tensors)
