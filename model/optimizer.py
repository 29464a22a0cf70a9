"""Optimizers from their config, with weight decay only where it belongs, and gradient clipping."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.config import OptimizerConfig

_FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """An optimizer over the model's trainable parameters, in two groups: decayed, then not decayed.

    - sgd: Sutskever et al. 2013, in torch's form v = momentum v + g, x = x - lr v; Nesterov steps by g + momentum v.
    - adam: Kingma & Ba 2015, Algorithm 1; weight decay is added to the gradient.
    - adamw: Loshchilov & Hutter 2019, Algorithm 2; decay is x = x - lr weight_decay x, apart from the gradient.

    Both groups are always there, even if empty, so a saved state fits whatever the model has.

    Args:
        model: a module or a wrapper around it (DDP, torch.compile).
        config: update rule and constants.
        lr: first learning rate; the training loop sets each group's `lr` from the schedule.
    """
    decayed, not_decayed = _split_by_decay(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    # One kernel for all parameters instead of several for each. None leaves torch to choose where there is no such one.
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in decayed + not_decayed) or None
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down together if their joint L2 norm exceeds `max_norm` (Pascanu et al. 2013, Algorithm 1).

    Args:
        parameters: those whose `.grad` is clipped in place; ones without a gradient are passed over.
        max_norm: largest norm left standing, > 0; infinity only measures.

    Returns:
        () float32, the norm before clipping. If it is not finite the gradients are useless, and the caller decides.

    Raises:
        ValueError: max_norm <= 0 or is not a number.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm={max_norm} would erase or reverse every gradient. Use one above 0 (1.0 is usual).")
    return nn.utils.clip_grad_norm_(parameters, max_norm).float()


def _split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that are decayed (matrices of linear layers) and those that are not.

    Decay keeps matrix products from growing. A norm's gain or a bias has no such growth to restrain, and decaying an
    embedding would shrink rare tokens, which get decay at every step and a gradient at few. A tied embedding is one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - embeddings
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if id(p) in matrices], [p for p in trainable if id(p) not in matrices]
