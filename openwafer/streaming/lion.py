"""Lion as an ordinary `torch.optim.Optimizer`, for plain PyTorch and for streaming alike.

Sign of an interpolated momentum, decoupled weight decay, one state tensor per parameter. Not here: sparse
gradients, fused or foreach forms.

Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, program 2.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from openwafer.base.errors import ConfigError


class Lion(Optimizer):
    """theta <- theta (1 - lr wd) - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g.

    Args:
        params: parameters or parameter groups, as for any torch optimizer.
        lr: step length; the paper advises 3 to 10 times less than for AdamW.
        betas: b1 (interpolation of the update) and b2 (decay of the momentum), each in [0, 1).
        weight_decay: decoupled; the paper advises 3 to 10 times more than for AdamW.
        maximize: go up the gradient instead of down.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        if not lr >= 0.0:
            raise ConfigError(f"Lion: lr must be >= 0, got {lr}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"Lion: betas must be in [0, 1), got {betas}")
        if not weight_decay >= 0.0:
            raise ConfigError(f"Lion: weight_decay must be >= 0, got {weight_decay}")
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns what `closure` returned, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(group, param, param.grad)
        return loss

    def _update(self, group: dict, param: Tensor, grad: Tensor) -> None:
        if grad.is_sparse:
            raise ConfigError("Lion: sparse gradients are not supported; use a dense embedding")
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        exp_avg, lr, (beta1, beta2) = state["exp_avg"], float(group["lr"]), group["betas"]
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0:
            param.mul_(1 - lr * group["weight_decay"])
        param.add_(exp_avg.mul(beta1).add_(grad, alpha=1 - beta1).sign_(), alpha=-lr)
        exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
