"""What every format is turned into and made from: a decoder's shape and its parameters, one at a time.

The parameters go by the names that `Decoder` gives them. So each format is described once, by what it calls them
(`Rule`), and any can be turned into any other with one parameter in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwafer.base.errors import CheckpointError
from openwafer.models.config import DecoderConfig, num_parameters
from openwafer.models.decoder import Decoder

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model somewhere.

    Attributes:
        config: its shape.
        tensors: gives (name of the decoder's parameter, value) for each parameter once, in any order.
        files: what travels along beside the parameters (tokenizer, generation config, card), by file name.
        notes: the keys of a Hugging Face config that say nothing about the shape, such as eos_token_id.
        source: where it is, for messages.
    """

    config: DecoderConfig
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    source: str
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """Some of our parameters, what another format calls them, and how the values are made of each other."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    join: Callable[[Tensors], Tensors] = lambda tensors: tensors
    split: Callable[[Tensors], Tensors] = lambda tensors: tensors


def parameter_shapes(config: DecoderConfig) -> dict[str, torch.Size]:
    """Shape of each parameter of the decoder, a tied one once."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}


def written(rules: Iterable[Rule], tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Our parameters under another format's names; a rule's are held until all of them have come."""
    by_name = {name: rule for rule in rules for name in rule.ours}
    waiting: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        rule = by_name.pop(name)
        held = waiting.setdefault(id(rule), {})
        # Whoever gives us a tensor may take its memory back when asked for the next one.
        held[name] = tensor if len(rule.ours) == 1 else tensor.clone()
        if len(held) == len(rule.ours):
            yield from zip(rule.theirs, rule.split(tuple(held[ours] for ours in rule.ours)), strict=True)
            del waiting[id(rule)]
    assert not by_name, f"parameters that did not come: {sorted(by_name)}"


def read_by(
    rules: Iterable[Rule], shapes: Mapping[str, torch.Size], read: Callable[[str], Tensor], source: str
) -> Iterator[tuple[str, Tensor]]:
    """Another format's tensors under our names.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    for rule in rules:
        theirs = tuple(read(name) for name in rule.theirs)
        try:
            ours = rule.join(theirs)
        except RuntimeError as error:
            raise _misshapen(source, rule, theirs) from error
        del theirs
        for name, tensor in zip(rule.ours, ours, strict=True):
            if tensor.shape != shapes[name]:
                raise CheckpointError(
                    f"{source}: {', '.join(rule.theirs)} make a {name} of shape {list(tensor.shape)}; the "
                    f"configuration asks for {list(shapes[name])}: the two do not belong together"
                )
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{source}: {', '.join(rule.theirs)} has dtype {tensor.dtype}; parameters are floats"
                )
            yield name, tensor


def check_size(config: DecoderConfig, num_tensors: int, num_elements: int, source: str) -> None:
    """Refuse a configuration that the file cannot nearly hold, before anything is built from it.

    Raises:
        CheckpointError: it asks for more layers and experts than there are tensors, or for twice the elements.
    """
    experts = config.experts.num_experts if config.experts is not None else 1
    if config.num_layers * experts > num_tensors or num_parameters(config) > 2 * num_elements:
        raise CheckpointError(
            f"{source}: its configuration asks for {config.num_layers} layers and {num_parameters(config):,} "
            f"parameters, its files hold {num_tensors} tensors with {num_elements:,} elements: the two do not belong "
            "together"
        )


def _misshapen(source: str, rule: Rule, theirs: Tensors) -> CheckpointError:
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(rule.theirs, theirs, strict=True))
    return CheckpointError(f"{source}: these tensors do not fit together: {shapes}")
