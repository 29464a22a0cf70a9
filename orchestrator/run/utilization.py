"""Model FLOP utilization: what a run computes of what its devices could, as far as both are known.

Model FLOPs are those of `model.size`: forward and backward passes of every target token once, whatever was computed
again. Time is that of the steps, waiting for data included; start-up, saving and evaluation are goodput's to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import ray

from model.config import ModelConfig
from model.size import flops_per_pair, flops_per_token
from orchestrator.config.recipe import RunConfig
from orchestrator.run.vocabulary import Vocabulary

CPU = "cpu"
"""Name of the device of workers without a GPU. What a CPU can do depends on clocks that change: it has no peak."""


class Peak(NamedTuple):
    """FLOP/s that a device does at most in dense matrix products, by the run's precision; None: it has no unit for it.

    Attributes:
        name: words that are in what CUDA calls the device; the first of PEAKS that fits counts.
        fp32: without TF32, which a run does not use.
        source: the data sheet; where it has numbers with sparsity, these are half of them.
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
    """What a run computes.

    Attributes:
        model_flops_per_s: of all workers; None where there is nothing to tell it from.
        mfu: share of what the workers' devices could do; None where that is not known.
    """

    model_flops_per_s: float | None
    mfu: float | None


def utilization(
    flops_per_token: float | None, tokens: int, step_s: float, worker_s: float, peak: float | None
) -> Utilization:
    """Over the steps in which `tokens` target tokens were trained on.

    Args:
        flops_per_token: model FLOPs for one target token; None: not known.
        step_s: seconds the steps took.
        worker_s: the same for each worker, added up: world size times seconds, where that never changed.
        peak: FLOP/s that one worker's device does at most; None: not known.
    """
    if not flops_per_token or step_s <= 0 or worker_s <= 0:
        return Utilization(None, None)
    flops = flops_per_token * tokens
    return Utilization(flops / step_s, flops / (worker_s * peak) if peak else None)


def peak_of(devices: Iterable[str], precision: str, override: float | None = None) -> float | None:
    """FLOP/s that the device of one worker does at most; None where it is not known, or devices differ.

    Args:
        devices: what a run's attempts trained on, by name; "" where an attempt does not say.
        precision: `train.precision`.
        override: `observe.peak_flops`.
    """
    if override is not None:
        return override
    names = {name for name in devices if name}
    if len(names) != 1:
        return None
    [device] = names
    if re.search(r"\bMIG\b", device):  # a slice: what it can do depends on how the device was cut
        return None
    found = next((peak for peak in PEAKS if re.search(rf"\b{re.escape(peak.name)}\b", device)), None)
    if found is None:
        return None
    return found.bf16 if precision == "bf16" else found.fp32


def model_flops_per_token(
    model: ModelConfig, vocab_size: int, seq_len: int, mean_lengths: tuple[float, float] | None = None
) -> float:
    """Model FLOPs for one target token.

    Args:
        vocab_size: rows of the target's embedding.
        seq_len: tokens of a packed sequence.
        mean_lengths: of pairs, tokens of an input and of a text; all are counted as if they were of these lengths.
    """
    if mean_lengths is None:
        return flops_per_token(model, vocab_size, seq_len)
    source_len, target_len = mean_lengths
    return flops_per_pair(model, vocab_size, source_len, target_len) / target_len


class Flops:
    """For a target token; of pairs by the mean lengths of those made so far, which the feeder is asked for.

    Args:
        feeder: handle of the actor `data.feeder.Feeder`.
    """

    def __init__(self, config: RunConfig, vocabulary: Vocabulary, feeder: Any) -> None:
        self._config, self._rows, self._feeder = config, vocabulary.rows, feeder
        self._asked: Any = None
        self._per_token = None if config.data.has_pairs else self._count(None)

    @property
    def per_token(self) -> float | None:
        """The newest that is known; None before anything is. Never waits."""
        if self._config.data.has_pairs:
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                self._take()
            if self._asked is None:
                self._asked = self._feeder.mean_lengths.remote()
        return self._per_token

    def _take(self) -> None:
        asked, self._asked = self._asked, None
        try:
            lengths = ray.get(asked)
        except ray.exceptions.RayError:  # the feeder has died, and is made anew
            return
        self._per_token = self._per_token if lengths is None else self._count(lengths)

    def _count(self, lengths: tuple[float, float] | None) -> float:
        config = self._config
        return model_flops_per_token(config.model, self._rows, config.data.seq_len, lengths)
