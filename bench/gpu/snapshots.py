"""Measures how long training stops for a snapshot: as it is written, and with two other ways of copying."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from gpu.setting import Setting
from gpu.stages import Found
from gpu.training import GPT2_124M, Training, sized
from orchestrator.snapshots.tensors import optimizer_tensors, save_state, state_bytes

_MEMORY = Path("/dev/shm")
"""Where workers keep snapshots: the node's memory. Containers may have little of it."""


def snapshots(setting: Setting) -> Found:
    """Seconds of `save_state`, of copies into pinned memory and of copies on the device, for the 124M shape."""
    training = Training(sized(GPT2_124M, setting), setting).run(1)
    model, optimizer = training.model, training.optimizer
    fits = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 1.1 * state_bytes(model)
    found: Found = {"in_memory": fits}
    with tempfile.TemporaryDirectory(dir=_MEMORY if fits else None) as folder:
        for name in ("first_s", "written_over_s", "written_over_again_s"):
            found[name] = round(setting.seconds(lambda: save_state(Path(folder), model, optimizer)), 4)
    tensors = [*model.state_dict().values(), *optimizer_tensors(model, optimizer).values()]
    found |= {"tensors": len(tensors), "megabytes": round(sum(tensor.nbytes for tensor in tensors) / 1e6, 1)}
    copies: list[torch.Tensor] = []
    found["copied_on_the_device_s"] = round(
        setting.seconds(lambda: copies.extend(tensor.detach().clone() for tensor in tensors)), 4
    )
    if setting.on_gpu:
        found |= pinned(setting, tensors)
    return found


def pinned(setting: Setting, tensors: list[torch.Tensor]) -> Found:
    """Copies into pinned memory: what it takes to pin it, once, and to copy."""
    targets: list[torch.Tensor] = []
    pinning_s = setting.seconds(
        lambda: targets.extend(torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors)
    )

    def copy() -> None:
        for target, source in zip(targets, tensors, strict=True):
            target.copy_(source.detach(), non_blocking=True)

    return {"pinning_s": round(pinning_s, 4), "copied_to_pinned_memory_s": round(setting.seconds(copy), 4)}
