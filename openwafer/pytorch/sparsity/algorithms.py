"""Static, GMP, SET and RigL: how a parameter's mask begins, and what becomes of it at an update.

Masks depend on (seed, name, step) and the weights alone, not on the order in which parameters come by. Source: GMP: Zhu
and Gupta, arXiv 1710.01878; SET: Mocanu et al., arXiv 1707.04780; RigL: Evci et al., arXiv 1911.11134; options and
defaults: documentation of `cerebras_pytorch` 2.10.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from openwafer.base.errors import ConfigError
from openwafer.pytorch.sparsity.hyper_schedules import (
    Constant,
    EveryFew,
    HyperSchedule,
    UpdateSchedule,
    parse_hyper_schedule,
    parse_update_schedule,
)
from openwafer.pytorch.sparsity.masks import Groups, checkerboard, drop_lowest, grow_highest, keep_highest

InitMethod = Literal["random", "topk", "from_zeros", "checkerboard"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What all have: how sparse, how a mask begins, when it changes."""

    sparsity: HyperSchedule
    init_method: InitMethod = "random"
    update: UpdateSchedule = field(default_factory=EveryFew)
    groups: Groups | None = None
    seed: int = 0

    changes: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False

    def initial(self, name: str, weight: Tensor) -> Tensor:
        """The mask of a parameter before the first step; full where the first update comes later."""
        if self.groups is not None:
            self.groups.check(name, tuple(weight.shape))
        if self.changes and not self.update.is_update(0):
            return torch.ones_like(weight, dtype=torch.bool)
        sparsity = self._sparsity(0, 0)
        match self.init_method:
            case "random":
                return keep_highest(self._random(name, 0, weight), sparsity, self.groups)
            case "topk":
                return keep_highest(weight.abs(), sparsity, self.groups)
            case "from_zeros":
                return weight != 0
            case "checkerboard":
                return checkerboard(tuple(weight.shape), sparsity)

    def next(self, name: str, step: int, updates: int, weight: Tensor, mask: Tensor, gradient: Tensor | None) -> Tensor:
        """The mask after an update at `step`, before which `updates` have been made.

        Args:
            gradient: of the loss by every weight, also those outside the mask; only where `needs_gradient`.
        """
        return mask

    def _sparsity(self, step: int, updates: int) -> float:
        return min(1.0, max(0.0, self.sparsity.at(step, updates)))

    def _random(self, name: str, step: int, weight: Tensor) -> Tensor:
        key = zlib.crc32(f"{self.seed}/{name}/{step}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.rand(weight.shape, generator=generator).to(weight.device)


@dataclass(frozen=True, kw_only=True)
class Static(Algorithm):
    """The mask stays as it began."""

    changes: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class GMP(Algorithm):
    """Gradual magnitude pruning: the weights of the highest magnitude stay, ever fewer."""

    def next(self, name: str, step: int, updates: int, weight: Tensor, mask: Tensor, gradient: Tensor | None) -> Tensor:
        return keep_highest(weight.abs(), self._sparsity(step, updates), self.groups)


@dataclass(frozen=True, kw_only=True)
class SET(Algorithm):
    """Sparse evolutionary training: the lowest magnitudes go, as many come back at random places."""

    drop_fraction: HyperSchedule = field(default_factory=lambda: Constant(value=0.3))

    def next(self, name: str, step: int, updates: int, weight: Tensor, mask: Tensor, gradient: Tensor | None) -> Tensor:
        left = drop_lowest(weight.abs(), mask, self.drop_fraction.at(step, updates), self.groups)
        score = self._grow_score(name, step, weight, gradient)
        return grow_highest(score, left, self._sparsity(step, updates), self.groups)

    def _grow_score(self, name: str, step: int, weight: Tensor, gradient: Tensor | None) -> Tensor:
        return self._random(name, step, weight)


@dataclass(frozen=True, kw_only=True)
class RigL(SET):
    """As SET, but weights come back where the gradient is largest."""

    needs_gradient: ClassVar[bool] = True

    def _grow_score(self, name: str, step: int, weight: Tensor, gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        return gradient.abs()


_ALGORITHMS: Mapping[str, type[Algorithm]] = {"static": Static, "gmp": GMP, "set": SET, "rigl": RigL}


def make_algorithm(tree: Mapping[str, Any], seed: int = 0) -> Algorithm:
    """The algorithm that a `sparsity` block of a trainer file describes (without its param_filter).

    Raises:
        ConfigError: an unknown algorithm or option, or values out of range.
    """
    options = dict(tree)
    name = str(options.pop("algorithm", "static")).lower()
    if name not in _ALGORITHMS:
        raise ConfigError(f"sparsity.algorithm {name!r} is none of {', '.join(_ALGORITHMS)}")
    kind = _ALGORITHMS[name]
    arguments: dict[str, Any] = {"seed": seed, "groups": _groups(options)}
    try:
        arguments["sparsity"] = parse_hyper_schedule(options.pop("sparsity", None))
        if "update" in options:
            arguments["update"] = parse_update_schedule(options.pop("update"))
        if issubclass(kind, SET) and "drop_fraction" in options:
            arguments["drop_fraction"] = parse_hyper_schedule(options.pop("drop_fraction"))
    except ValueError as error:
        raise ConfigError(f"sparsity: {error}") from error
    arguments["init_method"] = options.pop("init_method", "random")
    if arguments["init_method"] not in get_args(InitMethod):
        raise ConfigError(
            f"sparsity.init_method {arguments['init_method']!r} is none of {', '.join(get_args(InitMethod))}"
        )
    if options:
        raise ConfigError(f"sparsity: {name} has no option {', '.join(sorted(options))}")
    return _checked(kind(**arguments))


def _checked(algorithm: Algorithm) -> Algorithm:
    constant = isinstance(algorithm.sparsity, Constant)
    if isinstance(algorithm, Static) and not constant:
        raise ConfigError("sparsity: static needs one number for sparsity; gmp, set and rigl take a schedule")
    if isinstance(algorithm, GMP) and constant:
        raise ConfigError("sparsity: gmp with one number would never change its masks; use static, or a schedule")
    if not 0 <= algorithm.sparsity.at(0, 0) < 1:
        raise ConfigError(f"sparsity begins at {algorithm.sparsity.at(0, 0)}; it must be at least 0 and below 1")
    return algorithm


def _groups(options: dict[str, Any]) -> Groups | None:
    outs, ins = options.pop("balance_out_groups", None), options.pop("balance_in_groups", None)
    if outs and ins:
        raise ConfigError("sparsity: balance_in_groups and balance_out_groups exclude each other")
    return Groups("out", outs) if outs else Groups("in", ins) if ins else None
