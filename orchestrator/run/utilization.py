"""Model FLOP utilization: the share of the devices' peak FLOP/s that a run achieves.

Model FLOPs are those of `model.size`: one forward and one backward pass for every target token. Recomputation (as
activation checkpointing does) is not counted. Time is step time, including the wait for data; start-up, saving and
evaluation are the goodput ledger's subject.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from model.config import ModelConfig
from model.size import flops_per_pair, flops_per_token

CPU = "cpu"
"""Device name of workers without a GPU. It has no peak: a CPU's FLOP/s depend on clocks that change with the load."""


class Peak(NamedTuple):
    """Peak FLOP/s of a device in dense matrix products, by precision.

    Attributes:
        name: part of the name that CUDA gives the device; the first match in PEAKS counts.
        bf16: None if the device has no bf16 matrix units.
        fp32: without TF32, which a run does not use.
        source: the data sheet. If it gives numbers with sparsity, half of them are used.
    """

    name: str
    bf16: float | None
    fp32: float
    source: str


PEAKS = (
    Peak("B200", 2.25e15, 75e12, "NVIDIA HGX B200 data sheet, an eighth of eight"),
    Peak("H200 NVL", 835.5e12, 60e12, "NVIDIA H200 data sheet"),
    Peak("H200", 989.5e12, 67e12, "NVIDIA H200 data sheet, SXM"),
    Peak("H100 PCIe", 756e12, 51e12, "NVIDIA H100 PCIe product brief"),
    Peak("H100 NVL", 835.5e12, 60e12, "NVIDIA H100 data sheet"),
    Peak("H100", 989.5e12, 67e12, "NVIDIA H100 data sheet, SXM"),
    Peak("A100", 312e12, 19.5e12, "NVIDIA A100 data sheet"),
    Peak("L40S", 362.05e12, 91.6e12, "NVIDIA L40S data sheet"),
    Peak("L4", 121e12, 30.3e12, "NVIDIA L4 data sheet"),
    Peak("A10G", 70e12, 35e12, "NVIDIA A10G data sheet, for AWS G5"),
    Peak("A10", 125e12, 31.2e12, "NVIDIA A10 data sheet"),
    Peak("T4", None, 8.1e12, "NVIDIA T4 data sheet"),
    Peak("V100-SXM2", None, 15.7e12, "NVIDIA V100 data sheet"),
    Peak("V100-PCIE", None, 14e12, "NVIDIA V100 data sheet"),
)


class Utilization(NamedTuple):
    """Speed of a run's steps.

    Attributes:
        model_flops_per_s: model FLOP/s of all workers together; None if FLOPs per token or step time are not known.
        mfu: share of the workers' peak FLOP/s; None if the peak is not known.
    """

    model_flops_per_s: float | None
    mfu: float | None


def utilization(
    flops_per_token: float | None, tokens: int, step_s: float, worker_s: float, peak: float | None
) -> Utilization:
    """Utilization over the steps that trained on `tokens` target tokens.

    Args:
        flops_per_token: model FLOPs per target token; None: not known.
        step_s: seconds the steps took.
        worker_s: worker-seconds of the steps: world size times step time, summed over steps.
        peak: peak FLOP/s of one worker's device; None: not known.
    """
    if not flops_per_token or step_s <= 0 or worker_s <= 0:
        return Utilization(None, None)
    flops = flops_per_token * tokens
    return Utilization(flops / step_s, flops / (worker_s * peak) if peak else None)


def peak_of(devices: Iterable[str], precision: str, override: float | None = None) -> float | None:
    """Peak FLOP/s of one worker's device; None if it is not known or the attempts used different devices.

    Args:
        devices: device names of a run's attempts; "" for an attempt that has not reported one.
        precision: `train.precision`.
        override: `observe.peak_flops`.
    """
    if override is not None:
        return override
    names = {name for name in devices if name}
    if len(names) != 1:
        return None
    [device] = names
    if re.search(r"\bMIG\b", device):  # a slice of a GPU: its peak depends on its size
        return None
    found = next((peak for peak in PEAKS if re.search(rf"\b{re.escape(peak.name)}\b", device)), None)
    if found is None:
        return None
    return found.bf16 if precision == "bf16" else found.fp32


def model_flops_per_token(
    model: ModelConfig, vocab_size: int, seq_len: int, mean_lengths: tuple[float, float] | None = None
) -> float:
    """Model FLOPs per target token.

    Args:
        vocab_size: rows of the target embedding.
        seq_len: tokens of a packed sequence.
        mean_lengths: mean tokens of a pair's input and text; every pair is counted as having these lengths.
    """
    if mean_lengths is None:
        return flops_per_token(model, vocab_size, seq_len)
    source_len, target_len = mean_lengths
    return flops_per_pair(model, vocab_size, source_len, target_len) / target_len
