"""The Lion optimizer: updates of equal size, along the sign of a mean of gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (Symbolic Discovery of Optimization Algorithms), Algorithm 2.

    With gradient g, mean m, weight x and decay d: x = x - lr (sign(beta1 m + (1 - beta1) g) + d x), then
    m = beta2 m + (1 - beta2) g. One moment per weight, where Adam has two. Every weight moves by `lr` at every step, so
    it needs a learning rate 3 to 10 times lower than AdamW's and a decay higher by the same factor (section 5).

    Args:
        params: parameters, or groups of them with `lr`, `betas` and `weight_decay` of their own.
        lr: learning rate.
        betas: beta1 of the mean that gives the direction, beta2 of the one that is kept.
        weight_decay: decoupled decay.
    """

    def __init__(
        self, params: ParamsT, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; the closure is ignored."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["exp_avg"] = torch.zeros_like(parameter)
                    _update(parameter, parameter.grad, state["exp_avg"], group)


def _update(x: Tensor, gradient: Tensor, mean: Tensor, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    x.mul_(1.0 - group["lr"] * group["weight_decay"])
    x.add_(mean.lerp(gradient, 1.0 - beta1).sign_(), alpha=-group["lr"])
    mean.lerp_(gradient, 1.0 - beta2)
