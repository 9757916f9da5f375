"""The optimizer's parameter groups: who decays, at which share of the learning rate (muP), under which tags.

A group carries its share as `lr_scale` and its tags as `tags`; the optimizer ignores both, a schedule does not.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from openwafer.base.errors import ConfigError
from openwafer.models import DecoderConfig
from openwafer.models.mup import learning_rate_scale
from openwafer.train.config import OptimizerConfig

_ATTENTION = ("*attn.qkv.weight", "*attn.out.weight")
_FFN_IN = ("*mlp*.up.weight", "*mlp*.gate.weight")
_FFN_OUT = ("*mlp*.down.weight",)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("*wte.weight", "*wpe.weight"),
    "decoder_kernel": (*_ATTENTION, *_FFN_IN, *_FFN_OUT),
    "decoder_attention": _ATTENTION,
    "decoder_input_ffn": _FFN_IN,
    "decoder_output_ffn": _FFN_OUT,
}
"""Our parameters by ModelZoo's names of groups. Source: ModelZoo 2.10, default lr_adjustment_groups."""


def param_groups(
    model: nn.Module, optimizer: OptimizerConfig, weight_decay: float, decoder: DecoderConfig | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, those at the full learning rate first; every trainable parameter is in one.

    Raises:
        ConfigError: a pattern that matches no parameter, or an unknown group.
    """
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    scales = _scales(optimizer)
    _check_patterns([*scales, *(pattern for patterns in optimizer.tags.values() for pattern in patterns)], named)
    groups: dict[tuple[float, bool, tuple[str, ...]], dict[str, Any]] = {}
    for name, param in named:
        by_width = 1.0 if decoder is None else learning_rate_scale(name, decoder)
        scale = next((value for pattern, value in scales.items() if fnmatchcase(name, pattern)), by_width)
        tags = tuple(tag for tag, patterns in optimizer.tags.items() if _any(name, patterns))
        decays = bool(weight_decay) and (optimizer.decay_1d or param.dim() >= 2)
        group = groups.setdefault((scale, decays, tags), {"params": [], "lr_scale": scale, "tags": list(tags)})
        group["params"].append(param)
        if weight_decay and not decays:
            group["weight_decay"] = 0.0
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0] != 1.0, not key[1]))]


def _scales(optimizer: OptimizerConfig) -> dict[str, float]:
    """Scale by pattern; what names parameters counts before what names a group."""
    scales = dict(optimizer.lr_scales)
    for group, scale in optimizer.group_scales.items():
        if group not in GROUPS:
            raise ConfigError(f"optimizer.group_scales: {group!r} is no group; there are {', '.join(GROUPS)}.")
        for pattern in GROUPS[group]:
            scales.setdefault(pattern, scale)
    return scales


def _check_patterns(patterns: Iterable[str], named: list[tuple[str, nn.Parameter]]) -> None:
    ours = {pattern for group in GROUPS.values() for pattern in group}
    for pattern in patterns:
        if pattern not in ours and not any(fnmatchcase(name, pattern) for name, _ in named):
            examples = ", ".join(name for name, _ in named[:4])
            raise ConfigError(f"the pattern {pattern!r} matches no parameter; they have names such as {examples}.")


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
