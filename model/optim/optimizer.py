"""Builds optimizers from their config, sets learning rates by group, and clips gradients."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.optim.config import OptimizerConfig
from model.optim.lion import Lion
from model.optim.muon import Muon
from model.optim.parameter_groups import parameter_groups

_FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """An optimizer over the model's trainable parameters, in the groups of `parameter_groups`.

    With learning rate lr, gradient g, weight x and decay d:

    - sgd: Sutskever et al. 2013, in torch's form v = momentum v + g, x = x - lr v; Nesterov steps by g + momentum v.
    - adam: Kingma & Ba 2015, Algorithm 1.
    - adamw: Loshchilov & Hutter 2019, Algorithm 2.
    - adafactor: Shazeer & Stern 2018, Algorithms 4 and 5 with the constants of their section 9: without momentum, and
      with the learning rate max(1e-3, RMS(x)) min(lr, 1 / sqrt(t)), so that `lr` is relative to the weights (1e-2 is
      theirs). torch's class guards against zeros at a different point, as its documentation says.
    - lion: Chen et al. 2023, Algorithm 2.
    - muon: Jordan et al. 2024 for matrices of linear layers, but not the one that makes logits; adamw for the rest.
    - rmsprop: Tieleman & Hinton 2012, s = alpha s + (1 - alpha) g^2, x = x - lr g / (sqrt(s) + eps); with momentum
      v = momentum v + g / (sqrt(s) + eps), x = x - lr v.
    - adagrad: Duchi et al. 2011, s = s + g^2, x = x - lr g / (sqrt(s) + eps).

    sgd, adam, rmsprop and adagrad decay by adding d x to g, the others by x = x - lr d x.

    Args:
        model: a module or a wrapper around it (DDP, torch.compile).
        config: update rule, constants and groups.
        lr: first learning rate; `set_learning_rate` sets the next ones.

    Raises:
        ValueError: a group's pattern matches no parameter.
    """
    groups = parameter_groups(model, config)
    everything = [parameter for group in groups for parameter in group["params"]]
    # One kernel for all parameters instead of several for each. None lets torch choose if there is no such kernel.
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in everything) or None
    optimizer = _class_of(config, fused)(groups, lr=lr)
    set_learning_rate(optimizer, lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of the next update: `lr` times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients down together if their joint L2 norm exceeds `max_norm` (Pascanu et al. 2013, Algorithm 1).

    Args:
        parameters: those whose `.grad` is clipped in place; parameters without a gradient are ignored.
        max_norm: maximum norm, > 0; with infinity, the norm is only measured.

    Returns:
        () float32, the norm before clipping. If it is not finite the gradients are useless, and the caller decides.

    Raises:
        ValueError: max_norm <= 0 or is not a number.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm={max_norm} would erase or reverse every gradient. Use one above 0 (1.0 is usual).")
    return nn.utils.clip_grad_norm_(parameters, max_norm).float()


def _class_of(config: OptimizerConfig, fused: bool | None) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer that `config` names, with its constants in place."""
    adam: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "fused": fused}
    match config.name:
        case "sgd":
            return partial(torch.optim.SGD, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
        case "adam":
            return partial(torch.optim.Adam, **adam)
        case "adamw":
            return partial(torch.optim.AdamW, **adam)
        case "adafactor":
            return torch.optim.Adafactor
        case "lion":
            return partial(Lion, betas=config.betas)
        case "muon":
            velocity: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
            return partial(Muon, **velocity, adjust_lr=config.adjust_lr, **adam)
        case "rmsprop":
            return partial(torch.optim.RMSprop, alpha=config.alpha, eps=config.eps, momentum=config.momentum)
        case "adagrad":
            return partial(torch.optim.Adagrad, eps=config.eps, fused=fused)
