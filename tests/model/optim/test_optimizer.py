import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer, clip_gradients
from model.transformer import Transformer

LR = 0.1
DECAY = 0.2


def sgd(x: list[float], gradients: list[list[float]], momentum: float, nesterov: bool, decay: float) -> list[float]:
    """v = momentum v + g; x = x - lr v, or x - lr (g + momentum v) with Nesterov; decay is part of g."""
    velocity = [0.0] * len(x)
    for gradient in gradients:
        g = [gi + decay * xi for gi, xi in zip(gradient, x, strict=True)]
        velocity = [momentum * vi + gi for vi, gi in zip(velocity, g, strict=True)]
        ahead = [gi + momentum * vi if nesterov else vi for gi, vi in zip(g, velocity, strict=True)]
        x = [xi - LR * ai for xi, ai in zip(x, ahead, strict=True)]
    return x


def adam(x: list[float], gradients: list[list[float]], decoupled: bool, decay: float) -> list[float]:
    """Kingma & Ba 2015, Algorithm 1, with decay in the gradient or, decoupled, in the parameter."""
    beta1, beta2, eps = 0.8, 0.9, 1e-3
    mean, square = [0.0] * len(x), [0.0] * len(x)
    for t, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient):
            if decoupled:
                x[i] -= LR * decay * x[i]
            else:
                g += decay * x[i]
            mean[i] = beta1 * mean[i] + (1 - beta1) * g
            square[i] = beta2 * square[i] + (1 - beta2) * g * g
            x[i] -= LR * (mean[i] / (1 - beta1**t)) / (math.sqrt(square[i] / (1 - beta2**t)) + eps)
    return x


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"name": "sgd", "momentum": 0.0}, lambda x, g, decay: sgd(x, g, 0.0, False, decay)),
        ({"name": "sgd", "momentum": 0.7}, lambda x, g, decay: sgd(x, g, 0.7, False, decay)),
        ({"name": "sgd", "momentum": 0.7, "nesterov": True}, lambda x, g, decay: sgd(x, g, 0.7, True, decay)),
        ({"name": "adam"}, lambda x, g, decay: adam(x, g, False, decay)),
        ({"name": "adamw"}, lambda x, g, decay: adam(x, g, True, decay)),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw"],
)
def test_update_is_the_papers_formula(fields: dict[str, object], rule: Callable[..., list[float]]) -> None:
    layer = nn.Linear(3, 2).double()
    config = OptimizerConfig.model_validate({"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": DECAY} | fields)
    optimizer = build_optimizer(layer, config, LR)
    start = {"weight": layer.weight.flatten().tolist(), "bias": layer.bias.tolist()}
    gradients = [{"weight": torch.randn(2, 3).double(), "bias": torch.randn(2).double()} for _ in range(4)]
    for step in gradients:
        layer.weight.grad, layer.bias.grad = step["weight"].clone(), step["bias"].clone()
        optimizer.step()

    for name, decay in (("weight", DECAY), ("bias", 0.0)):
        expected = rule(start[name], [step[name].flatten().tolist() for step in gradients], decay)
        assert getattr(layer, name).flatten().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_only_matrices_of_linear_layers_decay(
    preset: str, tie_embeddings: bool, build: Callable[..., Transformer]
) -> None:
    model = build(preset=preset, tie_embeddings=tie_embeddings, n_layers=1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = build_optimizer(model, OptimizerConfig(weight_decay=DECAY), LR).param_groups
    matrices = {"attention.qkv", "attention.out", "feed_forward.down"}
    matrices.add("feed_forward.up" if preset == "gpt2" else "feed_forward.gate_up")
    expected = {f"blocks.0.{matrix}.weight" for matrix in matrices} | (set() if tie_embeddings else {"output.weight"})
    assert {names[id(p)] for p in decayed["params"]} == expected
    assert {names[id(p)] for p in kept["params"]} == set(names.values()) - expected
    assert (decayed["weight_decay"], kept["weight_decay"]) == (DECAY, 0.0)


def test_a_matrix_shared_with_an_embedding_does_not_decay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "output": nn.Linear(3, 5, bias=False)})
    model["output"].weight = model["embedding"].weight
    decayed, kept = build_optimizer(model, OptimizerConfig(), LR).param_groups
    assert decayed["params"] == [] and len(kept["params"]) == 1


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    decayed, kept = build_optimizer(layer, OptimizerConfig(), LR).param_groups
    assert decayed["params"] == [] and kept["params"][0] is layer.bias


OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "nesterov": True},
    {"name": "sgd", "momentum": 0.0},
    {"name": "adam"},
    {"name": "adamw"},
]


@pytest.mark.parametrize("fields", OPTIMIZERS)
def test_saved_state_continues_bit_for_bit(fields: dict[str, object]) -> None:
    config = OptimizerConfig.model_validate(fields)
    layer = nn.Linear(4, 4)
    optimizer = build_optimizer(layer, config, LR)
    gradients = torch.randn(4, 4, 4)

    def advance(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: Tensor) -> None:
        for gradient in steps:
            layer.weight.grad, layer.bias.grad = gradient.clone(), gradient[0].clone()
            optimizer.step()

    advance(layer, optimizer, gradients[:2])
    resumed_layer = copy.deepcopy(layer)
    resumed = build_optimizer(resumed_layer, config, lr=123.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(layer, optimizer, gradients[2:])
    advance(resumed_layer, resumed, gradients[2:])
    assert torch.equal(layer.weight, resumed_layer.weight)
    assert torch.equal(layer.bias, resumed_layer.bias)


@pytest.mark.parametrize("fields", OPTIMIZERS)
def test_kernels_are_fused_where_they_exist(fields: dict[str, object]) -> None:
    config = OptimizerConfig.model_validate(fields)
    assert all(group["fused"] for group in build_optimizer(nn.Linear(2, 2), config, LR).param_groups)
    elsewhere = build_optimizer(nn.Linear(2, 2, device="meta"), config, LR)
    assert not any(group["fused"] for group in elsewhere.param_groups)


def parameters_with_gradients() -> list[nn.Parameter]:
    """Gradients (3, 4) and (12): joint norm 13. One parameter has none."""
    first, second, unused = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 1))
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    return [first, second, unused]


def test_long_gradients_are_scaled_to_the_norm() -> None:
    first, second, unused = parameters_with_gradients()
    norm = clip_gradients([first, second, unused], max_norm=1.3)
    assert norm.item() == 13.0 and norm.dtype == torch.float32
    assert first.grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-5)
    assert second.grad.tolist() == pytest.approx([1.2], rel=1e-5)


@pytest.mark.parametrize("max_norm", [13.5, math.inf])
def test_short_gradients_are_left_alone(max_norm: float) -> None:
    first, second, unused = parameters_with_gradients()
    assert clip_gradients([first, second, unused], max_norm).item() == 13.0
    assert first.grad.tolist() == [3.0, 4.0] and second.grad.tolist() == [12.0]


def test_a_broken_gradient_shows_in_the_norm() -> None:
    parameters = parameters_with_gradients()
    parameters[1].grad.fill_(math.nan)
    assert clip_gradients(parameters, 1.0).isnan()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_norm_that_is_none_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm="):
        clip_gradients(parameters_with_gradients(), max_norm)
