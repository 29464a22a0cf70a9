"""Weights and optimizer state as files, by name: what a snapshot and a checkpoint hold of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orchestrator.checkpoint import MODEL, OPTIMIZER


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state into a folder."""
    save_file(_on_cpu(model.state_dict()), folder / MODEL)
    save_file(_on_cpu(optimizer_tensors(model, optimizer)), folder / OPTIMIZER)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Inverse of `save_state`; tensors go to each weight's device."""
    load_weights(folder, model)
    load_optimizer(folder, model, optimizer)


def state_bytes(model: nn.Module) -> int:
    """Most that weights and optimizer state take, before the optimizer has made its own: two moments a weight."""
    return 3 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def load_weights(folder: Path, model: nn.Module) -> None:
    """Read weights from a fetched checkpoint into the model."""
    model.load_state_dict(load_file(folder / MODEL))


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read optimizer state from a fetched checkpoint, onto each weight's device."""
    parameters = dict(model.named_parameters())
    state = optimizer.state_dict()
    numbers = {id(parameter): number for number, parameter in enumerate(_parameters_of(optimizer))}
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, entry = key.rpartition("/")
        state["state"].setdefault(numbers[id(parameters[name])], {})[entry] = value
    optimizer.load_state_dict(state)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state by `weight name/state name`; hyperparameters are the config's and not among it."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
