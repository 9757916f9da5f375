"""Text generation: one pass for the prompt, then one pass of one token for each new token.

Works for any callable with the decoder's signature. Not done here: batching of requests, beams, stop tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from openwafer.base.errors import ConfigError
from openwafer.models.cache import KVCache


@torch.no_grad()
def generate(
    model: Callable[..., Tensor],
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    on_token: Callable[[Tensor], object] | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Extend every row of input_ids by max_new_tokens sampled tokens.

    The model is used as it is: put it into eval mode first if it has dropout.

    Args:
        model: called as model(input_ids, past=cache, logits_to_keep=1), or without past when use_cache is False.
        input_ids: [B, T] with T at least 1, on the model's device.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the so many most likely tokens only; None for all.
        seed: same seed, same tokens; None draws from torch's global generator.
        on_token: called with each new token [B] as it is known.
        use_cache: keep keys and values; without, each token costs a pass over the whole sequence.

    Returns:
        [B, T + max_new_tokens].

    Raises:
        ConfigError: an option out of range, an empty prompt, or the model has too few positions.
    """
    _check(input_ids, max_new_tokens, temperature, top_k)
    limit = getattr(getattr(model, "config", None), "position_limit", None)
    if limit is not None and input_ids.shape[1] + max_new_tokens - 1 > limit:
        raise ConfigError(
            f"a prompt of {input_ids.shape[1]} tokens and {max_new_tokens} new ones pass this model's "
            f"{limit} positions; ask for at most {max(0, limit - input_ids.shape[1] + 1)} new tokens"
        )
    generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(seed)
    cache = KVCache() if use_cache else None
    sequence = step_input = input_ids
    for _ in range(max_new_tokens):
        options = {"logits_to_keep": 1} if cache is None else {"logits_to_keep": 1, "past": cache}
        logits = model(sequence if cache is None else step_input, **options)[:, -1]
        token = sample(logits, temperature, top_k, generator)
        step_input = token[:, None]
        sequence = torch.cat((sequence, step_input), dim=1)
        if on_token is not None:
            on_token(token)
    return sequence


def sample(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """One token [B] for each row of logits [B, V]; probabilities in fp32."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def _check(input_ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ConfigError(
            f"input_ids have shape {list(input_ids.shape)}; they must be [batch, tokens], 1 token or more"
        )
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must not be negative")
    if not temperature >= 0:
        raise ConfigError(f"temperature is {temperature}; it must be 0 (most likely token) or more")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}; it must be at least 1, or None for all tokens")
