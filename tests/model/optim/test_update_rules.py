"""Each optimizer against its paper's formula, written out in numpy and float64, on a matrix and a bias."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.optim.config import OptimizerConfig
from model.optim.muon import Muon, lr_factor, orthogonalized
from model.optim.optimizer import build_optimizer

Array = NDArray[np.float64]

LR, DECAY, STEPS = 0.1, 0.2, 5


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


def adafactor(x: Array, gradients: list[Array], decay: float) -> Array:
    """Shazeer & Stern 2018, Algorithm 4 for a matrix and 5 for a vector, constants of section 9."""
    rows, columns, squares = (np.zeros(n) for n in (x.shape[0], x.shape[-1], x.shape[0]))
    for t, g in enumerate(gradients, start=1):
        alpha, beta2 = max(1e-3, rms(x)) * min(LR, 1 / math.sqrt(t)), 1 - t**-0.8
        if x.ndim == 2:
            rows = beta2 * rows + (1 - beta2) * (g**2 + 1e-30).sum(axis=1)
            columns = beta2 * columns + (1 - beta2) * (g**2 + 1e-30).sum(axis=0)
            variance = np.outer(rows, columns) / rows.sum()
        else:
            variance = squares = beta2 * squares + (1 - beta2) * (g**2 + 1e-30)
        u = g / np.sqrt(variance)
        x = x - LR * decay * x - alpha * u / max(1.0, rms(u))
    return x


def lion(x: Array, gradients: list[Array], decay: float) -> Array:
    """Chen et al. 2023, Algorithm 2."""
    m = np.zeros_like(x)
    for g in gradients:
        x = x - LR * (np.sign(0.8 * m + (1 - 0.8) * g) + decay * x)
        m = 0.9 * m + (1 - 0.9) * g
    return x


def adamw(x: Array, gradients: list[Array], decay: float, lr: float = LR) -> Array:
    """Loshchilov & Hutter 2019, Algorithm 2."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        x = x - lr * decay * x - lr * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
    return x


def newton_schulz(m: Array) -> Array:
    """Jordan et al. 2024: five times X <- 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X."""
    x = m / np.linalg.norm(m)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def muon(x: Array, gradients: list[Array], decay: float, nesterov: bool, factor: float) -> Array:
    """Jordan et al. 2024; the velocity's scale does not matter, so here it is a plain sum."""
    if x.ndim == 1:
        return adamw(x, gradients, decay, lr=0.5 * LR)
    velocity = np.zeros_like(x)
    for g in gradients:
        velocity = 0.7 * velocity + g
        direction = g + 0.7 * velocity if nesterov else velocity
        x = x - LR * decay * x - LR * factor * newton_schulz(direction)
    return x


def rmsprop(x: Array, gradients: list[Array], decay: float, momentum: float) -> Array:
    """Tieleman & Hinton 2012, lecture 6e, with the penalty in the gradient."""
    s, velocity = np.zeros_like(x), np.zeros_like(x)
    for gradient in gradients:
        g = gradient + decay * x
        s = 0.85 * s + 0.15 * g**2
        velocity = momentum * velocity + g / (np.sqrt(s) + 1e-3)
        x = x - LR * velocity
    return x


def adagrad(x: Array, gradients: list[Array], decay: float) -> Array:
    """Duchi et al. 2011, the diagonal form of section 1.1, with the penalty in the gradient."""
    s = np.zeros_like(x)
    for gradient in gradients:
        g = gradient + decay * x
        s = s + g**2
        x = x - LR * g / (np.sqrt(s) + 1e-3)
    return x


SHAPE = (3, 5)
RULES: dict[str, tuple[dict[str, Any], Callable[[Array, list[Array], float], Array]]] = {
    "adafactor": ({"name": "adafactor"}, adafactor),
    "lion": ({"name": "lion"}, lion),
    "adamw": ({"name": "adamw"}, adamw),
    "muon": ({"name": "muon"}, lambda x, g, d: muon(x, g, d, True, 0.2 * math.sqrt(5))),
    "muon, plain": (
        {"name": "muon", "nesterov": False, "adjust_lr": "original"},
        lambda x, g, d: muon(x, g, d, False, 1.0),
    ),
    "rmsprop": ({"name": "rmsprop", "momentum": 0.0}, lambda x, g, d: rmsprop(x, g, d, 0.0)),
    "rmsprop, momentum": ({"name": "rmsprop"}, lambda x, g, d: rmsprop(x, g, d, 0.7)),
    "adagrad": ({"name": "adagrad"}, adagrad),
}
CONSTANTS = {"betas": (0.8, 0.9), "eps": 1e-3, "momentum": 0.7, "alpha": 0.85, "adamw_lr": 0.5, "weight_decay": DECAY}


@pytest.mark.parametrize("which", RULES)
def test_update_is_the_papers_formula(which: str) -> None:
    fields, rule = RULES[which]
    layer = nn.Linear(SHAPE[1], SHAPE[0]).double()
    optimizer = build_optimizer(layer, OptimizerConfig.model_validate(CONSTANTS | fields), LR)
    start = {name: weight.detach().numpy().copy() for name, weight in layer.named_parameters()}
    gradients = [{name: torch.randn_like(weight) for name, weight in layer.named_parameters()} for _ in range(STEPS)]
    for step in gradients:
        layer.weight.grad, layer.bias.grad = step["weight"].clone(), step["bias"].clone()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    for name, decay in (("weight", DECAY), ("bias", 0.0)):
        expected = rule(start[name], [step[name].numpy() for step in gradients], decay)
        np.testing.assert_allclose(getattr(layer, name).detach().numpy(), expected, rtol=1e-9)


def test_muon_is_torchs_but_for_its_bfloat16() -> None:
    ours, theirs = (nn.Parameter(torch.ones(24, 8)) for _ in range(2))
    rest = {"params": [], "weight_decay": 0.0}
    group = {"params": [ours], "weight_decay": DECAY, "is_muon": True, "stacked": [[24]]}
    muon = Muon([group, rest], LR, 0.95, True, "match_rms_adamw", (0.9, 0.95), 1e-8, True)
    torchs = torch.optim.Muon([theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(24, 8)
        muon.step()
        torchs.step()
    assert (ours - theirs).norm() < 0.02 * (ours - 1).norm()


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (1, 6), (6, 1)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    u, _, vt = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), full_matrices=False)
    matrix = 100.0 * u @ np.diag(np.linspace(1.0, 0.1, min(shape))) @ vt
    found = u.T @ orthogonalized(torch.from_numpy(matrix)).numpy() @ vt.T
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-9)
    assert ((np.diag(found) > 0.6) & (np.diag(found) < 1.25)).all()


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert orthogonalized(torch.zeros(4, 3)).eq(0).all()


def test_what_two_workers_round_otherwise_does_not_grow_in_orthogonalizing() -> None:
    """In bfloat16 this is 5e-3, and one worker and two would soon have other losses."""
    matrix = torch.randn(192, 512)
    other = matrix * (1 + 1e-7 * torch.randn(192, 512))
    update = orthogonalized(matrix)
    assert (orthogonalized(other) - update).norm() < 1e-5 * update.norm()


def test_matrices_side_by_side_are_orthogonalized_each_by_itself() -> None:
    rows = [4, 2, 6]
    whole = nn.Parameter(torch.zeros(12, 5))
    parts = [nn.Parameter(torch.zeros(n, 5)) for n in rows]
    rest = {"params": [], "weight_decay": 0.0}

    def muon(parameters: list[nn.Parameter], stacked: list[list[int]]) -> Muon:
        group = {"params": parameters, "weight_decay": 0.0, "is_muon": True, "stacked": stacked}
        return Muon([group, rest], LR, 0.9, True, "original", (0.9, 0.95), 1e-8, True)

    together, apart = muon([whole], [rows]), muon(parts, [[n] for n in rows])
    for _ in range(3):
        whole.grad = torch.randn(12, 5)
        for part, gradient in zip(parts, whole.grad.split(rows), strict=True):
            part.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(whole.data, torch.cat([part.data for part in parts]))


@pytest.mark.parametrize(("shape", "adamws", "original"), [((4, 16), 0.8, 1.0), ((16, 4), 0.8, 2.0)])
def test_factor_on_muons_learning_rate(shape: tuple[int, int], adamws: float, original: float) -> None:
    assert lr_factor("match_rms_adamw", *shape) == pytest.approx(adamws)
    assert lr_factor("original", *shape) == original


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon", "rmsprop", "adagrad"])
def test_parameters_without_a_gradient_are_left_alone(name: str) -> None:
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, OptimizerConfig.model_validate({"name": name}), LR)
    before = layer.weight.detach().clone()
    layer.bias.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(layer.weight, before) and not layer.bias.eq(0).all()


def least_loss(name: str, lr: float) -> float:
    """Loss of a small regression after 60 steps, as a fraction of the first."""
    torch.manual_seed(1)
    inputs, layers = torch.randn(64, 6), nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    targets = torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2].sin(), inputs.sum(dim=1)], dim=1)
    optimizer = build_optimizer(layers, OptimizerConfig.model_validate({"name": name, "weight_decay": 0.0}), lr)
    losses: list[Tensor] = []
    for _ in range(60):
        losses.append((layers(inputs) - targets).square().mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return float(losses[-1].detach() / losses[0].detach())


@pytest.mark.parametrize(
    ("name", "lr"),
    [("adamw", 0.02), ("adafactor", 0.1), ("lion", 0.01), ("muon", 0.02), ("rmsprop", 0.01), ("adagrad", 0.1)],
)
def test_defaults_learn(name: str, lr: float) -> None:
    assert least_loss(name, lr) < 0.4


def test_sizes_of_state() -> None:
    """Numbers kept for a matrix of 8 x 6, single steps not counted."""
    kept = {}
    for name in ("sgd", "adamw", "adafactor", "lion", "muon", "rmsprop", "adagrad"):
        layer = nn.Linear(6, 8, bias=False)
        optimizer = build_optimizer(layer, OptimizerConfig.model_validate({"name": name}), LR)
        layer.weight.grad = torch.ones(8, 6)
        optimizer.step()
        values: Any = itertools.chain(*(entries.values() for entries in optimizer.state.values()))
        kept[name] = sum(value.numel() for value in values if isinstance(value, Tensor) and value.ndim)
    assert kept == {"sgd": 48, "adamw": 96, "adafactor": 14, "lion": 48, "muon": 48, "rmsprop": 48, "adagrad": 48}
