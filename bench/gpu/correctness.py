"""Compares the losses of the same small run on the device, in several ways, with those of a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from gpu.setting import Setting
from gpu.stages import Found
from gpu.training import Shape, Training

_SMALL = Shape(
    {"preset": "gpt2", "n_layers": 4, "n_heads": 4, "d_model": 128, "vocab_size": 1024},
    seq_len=128,
    micro_batch_size=4,
    lr=1e-3,
)
_STEPS = 20

_FP32_TOLERANCE = 1e-4
"""Of a loss, relative: float32 sums in another order, and 20 updates on top of them."""

_BF16_TOLERANCE = 2e-2
"""Likewise for products of 8 bits of mantissa."""


class Way(NamedTuple):
    """One way to compute the run.

    Attributes:
        precision: `train.precision`.
        compiled: `train.compile`.
        tolerance: largest relative difference of a loss from the reference.
    """

    precision: str
    compiled: bool
    tolerance: float


_WAYS = {
    "fp32": Way("fp32", False, _FP32_TOLERANCE),
    "fp32 compiled": Way("fp32", True, _FP32_TOLERANCE),
    "bf16": Way("bf16", False, _BF16_TOLERANCE),
    "bf16 compiled": Way("bf16", True, _BF16_TOLERANCE),
}


def correctness(setting: Setting) -> Found:
    """Largest relative difference from the CPU's fp32 losses, and bitwise reproducibility, for every way."""
    shape, steps = _SMALL, _STEPS
    if setting.tiny:
        shape, steps = replace(_SMALL.with_model(n_layers=1, d_model=64), seq_len=32), 4
    reference = train(shape, replace(setting, device=torch.device("cpu")), _WAYS["fp32"], steps)
    found: Found = {"reference": "fp32 on the CPU", "steps": steps, "reference_losses": reference.losses}
    for name, way in _WAYS.items():
        if setting.tiny and name == "bf16 compiled":
            continue  # one way that compiles shows that it can be done
        once = train(shape, setting, way, steps)
        worst = max(abs(loss / right - 1) for loss, right in zip(once.losses, reference.losses, strict=True))
        found[name] = {"worst_difference": worst, "tolerance": way.tolerance, "within": worst <= way.tolerance}
        if not (setting.tiny and way.compiled):
            found[name]["same_bits_twice"] = same_bits(once, train(shape, setting, way, steps))
    found["right"] = all(each["within"] for name, each in found.items() if name in _WAYS)
    return found


def train(shape: Shape, setting: Setting, way: Way, steps: int) -> Training:
    """Trains the small run from its beginning."""
    torch._dynamo.reset()
    return Training(shape, setting, precision=way.precision, compiled=way.compiled).run(steps)


def same_bits(one: Training, other: Training) -> bool:
    """Whether two runs have equal losses and equal final weights, bit by bit."""
    return one.losses == other.losses and one.digest() == other.digest()
