"""Weights and optimizer state as files, by name: what a checkpoint holds of torch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import DiskFullError
from orchestrator.checkpoint import MODEL, OPTIMIZER


def snapshot_state(model: nn.Module, optimizer: torch.optim.Optimizer, label: str = "snapshot") -> Path:
    """A copy of weights and optimizer state as files, in memory where there is room; the caller deletes the folder.

    Args:
        label: part of the folder's name, by which `discard_snapshots` finds what a killed process left.

    Raises:
        DiskFullError: there is no room.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"manta-{label}-", dir=scratch_folder()))
    save_state(folder, model, optimizer)
    return folder


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state into a folder; where that fails, the folder is gone.

    Raises:
        DiskFullError: there is no room.
    """
    try:
        save_file(_on_cpu(model.state_dict()), folder / MODEL)
        save_file(_on_cpu(optimizer_tensors(model, optimizer)), folder / OPTIMIZER)
    except BaseException as error:
        free = shutil.disk_usage(folder).free
        shutil.rmtree(folder, ignore_errors=True)
        if "No space left" in str(error):  # safetensors raises a class of its own
            raise DiskFullError(
                f"No room for a checkpoint in {folder.parent}: {free / 1e6:,.0f} MB are free. Make room, or set TMPDIR."
            ) from error
        raise


def run_label(run_url: str) -> str:
    """A run's name among the files of all runs on a machine: the same for the same address in storage."""
    return hashlib.blake2b(run_url.encode(), digest_size=8).hexdigest()


def discard_snapshots(label: str) -> None:
    """Delete this machine's snapshots of that label: shared memory they fill is freed by nobody else."""
    for scratch in (tempfile.gettempdir(), scratch_folder()):
        for folder in Path(scratch or "/dev/shm").glob(f"manta-{label}-*"):
            shutil.rmtree(folder, ignore_errors=True)


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


def scratch_folder(minimum_free_bytes: int = 1 << 30) -> str | None:
    """Shared memory where it is roomy, else None for the system's temporary folder."""
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir() and shutil.disk_usage(shared_memory).free >= minimum_free_bytes:
        return str(shared_memory)
    return None


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
