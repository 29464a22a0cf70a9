"""Muon for the matrices inside a model, and AdamW for all other parameters, as one optimizer."""

import math
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- a X + (b A + c A^2) X with A = X X^T; Jordan et al. 2024 chose them for a steep slope at 0."""

NEWTON_SCHULZ_STEPS = 5

_SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    With gradient g, velocity v, weight x of A rows and B columns, and decay d, in groups that have `is_muon`:
    v = momentum v + (1 - momentum) g; u = v, or momentum v + (1 - momentum) g with Nesterov's look ahead;
    x = x - lr d x - lr f(A, B) orthogonalized(u). f is 0.2 sqrt(max(A, B)) (Liu et al. 2025, eq. 4: steps as large as
    AdamW's) or sqrt(max(1, A / B)) (Jordan's own). The other groups are AdamW's.

    torch.optim.Muon is the same rule, but iterates in bfloat16: gradients that differ by 1e-7, as those of one worker
    and of two do, give updates that differ by 0.7 %. Here it is float32, and they differ by 2e-6. Nor does torch's
    class split stacked matrices, such as queries, keys and values, which are better orthogonalized separately (Jordan
    et al. 2024).

    Args:
        groups: those with `is_muon` contain matrices only, and `stacked`: for every matrix the rows of the matrices
            stacked in it. Each group has its `weight_decay`.
        lr: learning rate.
        momentum: decay of the velocity.
        nesterov: whether to look ahead along it.
        adjust_lr: "match_rms_adamw" or "original", see above.
        betas, eps, fused: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        nesterov: bool,
        adjust_lr: str,
        betas: tuple[float, float],
        eps: float,
        fused: bool | None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "is_muon": False})
        for group in self.param_groups:
            if group["is_muon"]:
                group |= {"momentum": momentum, "nesterov": nesterov, "adjust_lr": adjust_lr}
            else:
                group |= {"betas": betas, "eps": eps, "fused": fused}
        self._share_with_adamw()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state; also called at the end of `load_state_dict`, which creates new groups and a new state."""
        super().__setstate__(state)
        self._share_with_adamw()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; the closure is ignored."""
        for group in self.param_groups:
            if not group["is_muon"]:
                continue
            for matrix, rows in zip(group["params"], group["stacked"], strict=True):
                if matrix.grad is not None:
                    state = self.state[matrix]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(matrix)
                    _update(matrix, matrix.grad, state["momentum_buffer"], rows, group)
        self._adamw.step()

    def _share_with_adamw(self) -> None:
        """Creates an AdamW that works on this optimizer's groups and state."""
        self._adamw = torch.optim.AdamW([group for group in self.param_groups if not group["is_muon"]])
        self._adamw.state = self.state


def _update(matrix: Tensor, gradient: Tensor, velocity: Tensor, rows: list[int], group: dict[str, Any]) -> None:
    lr, momentum = group["lr"], group["momentum"]
    velocity.lerp_(gradient, 1.0 - momentum)
    direction = gradient.lerp(velocity, momentum) if group["nesterov"] else velocity
    matrix.mul_(1.0 - lr * group["weight_decay"])
    for part, part_direction in zip(torch.split(matrix, rows), torch.split(direction, rows), strict=True):
        part.add_(orthogonalized(part_direction), alpha=-lr * lr_factor(group["adjust_lr"], *part.shape))


def lr_factor(adjust_lr: str, n_rows: int, n_columns: int) -> float:
    """Factor of a matrix's learning rate; see `Muon`."""
    if adjust_lr == "original":
        return math.sqrt(max(1.0, n_rows / n_columns))
    return 0.2 * math.sqrt(max(n_rows, n_columns))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly U V^T of the matrix's U S V^T: Newton-Schulz leaves singular values of about 0.7 to 1.2, small ones less.

    Args:
        matrix: (A, B), any scale.

    Returns:
        (A, B), dtype of `matrix`.
    """
    a, b, c = NEWTON_SCHULZ
    # The smaller of the two Gram matrices is the cheaper one.
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=_SMALLEST_NORM)  # the largest singular value is at most the norm
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
