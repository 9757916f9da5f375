"""Masks on a plain module: weights, gradients and the optimizer's moments outside a mask are zero at all times.

This is the meaning of sparsity in plain PyTorch: dense tensors with zeros in them, nothing faster. It attaches to the
parameters and to a torch.optim optimizer by hooks; a streamed job refuses optimizers with hooks.
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from openwafer.base.errors import ConfigError
from openwafer.pytorch.sparsity.algorithms import Algorithm

Filter = str | Sequence[str] | Callable[[str, Tensor], bool]
"""Glob patterns of names, or a predicate of name and parameter."""


def is_sparse_by_default(name: str, parameter: Tensor) -> bool:
    """Everything but vectors, embeddings, norms and the head. Source: documentation of `cerebras_pytorch` 2.10."""
    lower = name.lower()
    kept_dense = ("embedding", "norm", "lm_head", "pe_helper", "wte", "wpe", "ln_")
    return parameter.dim() > 1 and not any(part in lower for part in kept_dense)


class SparseModel:
    """The masks of a model's parameters, by name, and their upkeep.

    Args:
        model: its parameters are masked at once.
        groups: filters with the algorithm for the parameters they match; the first that matches counts.

    Raises:
        ConfigError: a filter that matches nothing, or balance groups that a parameter has not.
    """

    def __init__(self, model: nn.Module, groups: Iterable[tuple[Filter, Algorithm]]):
        self.step_count = 0
        self.num_updates: dict[int, int] = {}
        self.masks: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._algorithms: dict[str, Algorithm] = {}
        self._gradients: dict[str, Tensor] = {}
        groups = list(groups)
        matched = [False] * len(groups)
        for name, parameter in model.named_parameters():
            number = next((n for n, (chosen, _) in enumerate(groups) if _matches(chosen, name, parameter)), None)
            if number is not None:
                matched[number] = True
                self._add(name, parameter, groups[number][1])
        if not all(matched):
            raise ConfigError(
                f"the filter {groups[matched.index(False)][0]} matches no parameter, or an earlier one does"
            )
        self.apply()

    @property
    def density(self) -> float:
        """Share of the masked parameters' weights that exist."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / total

    @torch.no_grad()
    def apply(self) -> None:
        """Set every weight outside its mask to zero."""
        for name, parameter in self._parameters.items():
            parameter.mul_(self.masks[name])

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep masks up to date with every step of an optimizer over the parameters."""
        optimizer.register_step_post_hook(lambda optimizer, *_: self._after_step(optimizer))

    def state_dict(self) -> dict:
        """Masks and counts."""
        return {"step": self.step_count, "updates": [self._updates(name) for name in self.masks], "masks": self.masks}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where `state_dict` was taken, on a model with the same filters."""
        self.step_count = state["step"]
        for name, updates in zip(self.masks, state["updates"], strict=True):
            self.num_updates[id(self._algorithms[name])] = updates
            self.masks[name].copy_(state["masks"][name])
        self.apply()

    def _add(self, name: str, parameter: nn.Parameter, algorithm: Algorithm) -> None:
        self.masks[name] = algorithm.initial(name, parameter.detach())
        self._parameters[name] = parameter
        self._algorithms[name] = algorithm
        # The mask that counts at the first step is the first update's result where training starts sparse.
        self.num_updates.setdefault(id(algorithm), int(algorithm.changes and algorithm.update.is_update(0)))

        def mask_gradient(gradient: Tensor) -> Tensor:
            if algorithm.needs_gradient and algorithm.update.is_update(self.step_count + 1):
                held = self._gradients.get(name)
                self._gradients[name] = gradient.clone() if held is None else held.add_(gradient)
            return gradient * self.masks[name]

        parameter.register_hook(mask_gradient)

    def _updates(self, name: str) -> int:
        return self.num_updates[id(self._algorithms[name])]

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.step_count += 1
        updated = set()
        for name, parameter in self._parameters.items():
            algorithm = self._algorithms[name]
            if algorithm.changes and algorithm.update.is_update(self.step_count) and parameter.grad is not None:
                gradient, updates = self._gradients.pop(name, None), self._updates(name)
                mask = algorithm.next(name, self.step_count, updates, parameter, self.masks[name], gradient)
                self.masks[name].copy_(mask)
                updated.add(id(algorithm))
            self._prune(parameter, self.masks[name], optimizer)
        for key in updated:
            self.num_updates[key] += 1
        self._gradients.clear()

    def _prune(self, parameter: nn.Parameter, mask: Tensor, optimizer: torch.optim.Optimizer) -> None:
        parameter.mul_(mask)
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.mul_(mask)


def _matches(chosen: Filter, name: str, parameter: Tensor) -> bool:
    if isinstance(chosen, str):
        return fnmatchcase(name, chosen)
    if callable(chosen):
        return chosen(name, parameter)
    return any(fnmatchcase(name, pattern) for pattern in chosen)
