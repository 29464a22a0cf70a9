"""Reads and writes the tensors of a snapshot or checkpoint: weights, optimizer state and averages, by weight name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.optim.weight_average import WeightAverage
from orchestrator.run.checkpoint import AVERAGE, MODEL, OPTIMIZER, weights_file


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    """Writes weights, optimizer state and, where one is kept, the average of the weights into a folder.

    Existing files of the same tensors are written over in place.
    """
    states = {folder / MODEL: model.state_dict(), folder / OPTIMIZER: optimizer_tensors(model, optimizer)}
    if average is not None:
        states[folder / AVERAGE] = average.state_dict()
    for path, tensors in states.items():
        if not _written_over(tensors, path):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    """Reads what `save_state` wrote, each tensor onto its weight's device."""
    load_weights(folder, model)
    load_optimizer(folder, model, optimizer)
    if average is not None:
        average.load_state_dict(load_file(folder / AVERAGE))


def state_bytes(model: nn.Module, *, averaged: bool = False) -> int:
    """Upper bound of the bytes of a snapshot: weights and two optimizer moments each, before the optimizer has any.

    Args:
        averaged: whether an average of the weights is kept too.
    """
    return (4 if averaged else 3) * sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters()
    )


def load_weights(folder: Path, model: nn.Module, *, averaged: bool = False) -> None:
    """Reads the weights of a checkpoint into the model; with `averaged`, their moving average instead."""
    model.load_state_dict(load_file(folder / weights_file(averaged=averaged)))


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads the optimizer state of a checkpoint, onto each weight's device."""
    parameters = dict(model.named_parameters())
    state = optimizer.state_dict()
    numbers = {id(parameter): number for number, parameter in enumerate(_parameters_of(optimizer))}
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, entry = key.rpartition("/")
        state["state"].setdefault(numbers[id(parameters[name])], {})[entry] = value.clone()  # not a view of a file
    optimizer.load_state_dict(state)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state by `weight name/state name`, without hyperparameters, which belong to the config."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _written_over(tensors: Mapping[str, Tensor], path: Path) -> bool:
    """Writes tensors over those of a safetensors file, in the memory it has; False if it is missing or has others.

    The format: length of the header (8 bytes), header (JSON: type, shape and offsets of each tensor), and the tensors.
    """
    if not path.exists():
        return False
    with path.open("r+b") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
        if header.keys() != tensors.keys() or not all(_is_like(tensors[name], header[name]) for name in header):
            return False
        for name, entry in header.items():  # not mapped: pages of a mapped file count as the process's memory
            file.seek(begin + entry["data_offsets"][0])
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return True


def _is_like(tensor: Tensor, entry: Mapping[str, Any]) -> bool:
    start, end = entry["data_offsets"]
    return bool(list(tensor.shape) == entry["shape"] and tensor.numel() * tensor.element_size() == end - start)
