"""The training loop's own step on one device: shapes, random tokens, and time per step."""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data.order.packing import MicroBatch
from gpu.setting import Setting
from model.optim.optimizer import build_optimizer
from orchestrator.config.recipe import RunConfig
from orchestrator.evaluation.forward import build_model
from orchestrator.run.utilization import model_flops_per_token, peak_of, utilization
from orchestrator.run.vocabulary import Vocabulary
from orchestrator.train.batches import FetchedShare
from orchestrator.train.step import apply_update, compute, data_parallel
from orchestrator.train.step_sync import StepDirective

MICRO_BATCHES = 4
"""Micro-batches in a step."""

WARMUP_STEPS = 2
"""First steps that are not measured: they compile, and the allocator reserves memory."""


@dataclass(frozen=True)
class Shape:
    """A model and its micro-batches.

    Attributes:
        model: fields of its ModelConfig; `vocab_size` is among them.
        seq_len: target tokens of a sequence.
        micro_batch_size: sequences of a micro-batch.
        input_len: tokens of each source; None for a decoder alone.
        lr: learning rate.
    """

    model: dict[str, Any] = field(hash=False)
    seq_len: int
    micro_batch_size: int
    input_len: int | None = None
    lr: float = 3e-4

    def with_model(self, **fields: Any) -> Self:
        """The same with other fields of the model."""
        return replace(self, model=self.model | fields)


def gpt2(n_layers: int, n_heads: int, d_model: int, micro_batch_size: int) -> Shape:
    """A GPT-2 shape over sequences of 1024 tokens; the vocabulary is rounded up to a multiple of 64."""
    shape = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model, "vocab_size": 50304}
    return Shape({"preset": "gpt2", **shape}, 1024, micro_batch_size)


GPT2_124M = gpt2(12, 12, 768, 12)
GPT2_350M = gpt2(24, 16, 1024, 12)
GPT2_760M = gpt2(24, 16, 1536, 8)

# The base model of Vaswani et al. 2017, table 3, on pairs of one length.
ENCODER_DECODER = Shape(
    {
        "architecture": "encoder_decoder",
        "preset": "original",
        "n_layers": 6,
        "n_heads": 8,
        "d_model": 512,
        "vocab_size": 37056,
    },
    seq_len=256,
    micro_batch_size=48,
    input_len=256,
)

_TINY = {"n_layers": 1, "n_heads": 2, "d_model": 64, "vocab_size": 512}


def sized(shape: Shape, setting: Setting) -> Shape:
    """The shape itself, or a tiny one of its kind."""
    if not setting.tiny:
        return shape
    small = replace(shape.with_model(**_TINY), seq_len=64, micro_batch_size=2)
    return small if shape.input_len is None else replace(small, input_len=48)


class Step(NamedTuple):
    """Results of one step.

    Attributes:
        loss: mean over its target tokens.
        grad_norm: before clipping.
        seconds: until the device had finished it.
        reported_s: seconds per micro-batch as the ranks report them to each other, to find stragglers.
    """

    loss: float
    grad_norm: float
    seconds: float
    reported_s: float


class Training:
    """A run of one rank like in the training loop, without data, storage and other processes.

    Every step has the same random tokens, so that the loss falls and two of these can be compared.

    Args:
        shape: what to train.
        setting: where.
        precision: `train.precision`.
        compiled: `train.compile`.
    """

    def __init__(self, shape: Shape, setting: Setting, *, precision: str = "bf16", compiled: bool = False) -> None:
        self.shape, self.setting = shape, setting
        self.config = run_config(shape, setting, precision, compiled)
        rows = shape.model["vocab_size"]
        self.model = build_model(self.config, Vocabulary(rows, 0)).to(setting.device)
        self.optimizer = build_optimizer(self.model, self.config.train.optimizer, shape.lr)
        self.ddp = data_parallel(self.model, compiled=compiled)
        self.share = random_share(shape)
        self.steps: list[Step] = []

    def step(self) -> Step:
        """One step of the training loop."""
        self.setting.synchronize()
        began = time.perf_counter()
        sync, reported_s = compute(self.ddp, self.share, self.config, len(self.steps), self.setting.device)
        sync.combine(StepDirective(), 0, reported_s)
        loss = sync.loss_sum() / self.share.target_tokens
        grad_norm = apply_update(self.model, self.optimizer, self.shape.lr, self.config.train.grad_clip)
        self.setting.synchronize()
        self.steps.append(Step(loss, grad_norm, time.perf_counter() - began, reported_s))
        return self.steps[-1]

    def run(self, steps: int) -> Self:
        """So many steps."""
        for _ in range(steps):
            self.step()
        return self

    @property
    def losses(self) -> list[float]:
        """Of all steps so far."""
        return [step.loss for step in self.steps]

    def digest(self) -> str:
        """Of all weights, bit by bit."""
        whole = hashlib.sha256()
        for weight in self.model.state_dict().values():
            whole.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    def speed(self) -> dict[str, Any]:
        """Tokens/s, MFU and memory over the steps after the warm-up."""
        counted = self.steps[WARMUP_STEPS:]
        step_s = statistics.median(step.seconds for step in counted)
        lengths = None if self.shape.input_len is None else (self.shape.input_len, self.shape.seq_len)
        flops = model_flops_per_token(self.config.model, self.shape.model["vocab_size"], self.shape.seq_len, lengths)
        name = torch.cuda.get_device_name(self.setting.device) if self.setting.on_gpu else ""
        peak = peak_of([name], self.config.train.precision)
        used = utilization(flops, self.share.target_tokens, step_s, step_s, peak)
        return {
            "tokens_per_s": round(self.share.target_tokens / step_s),
            "mfu_percent": None if used.mfu is None else round(100 * used.mfu, 2),
            "ms_per_micro_batch": round(1e3 * step_s / MICRO_BATCHES, 2),
            "reported_ms_per_micro_batch": round(1e3 * statistics.median(step.reported_s for step in counted), 2),
            "micro_batch_size": self.shape.micro_batch_size,
            "first_step_s": round(self.steps[0].seconds, 2),
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if self.setting.on_gpu else None,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "first_loss": self.steps[0].loss,
            "last_loss": self.steps[-1].loss,
        }


def run_config(shape: Shape, setting: Setting, precision: str, compiled: bool) -> RunConfig:
    """The recipe of such a run, as far as a step reads it."""
    source = {"path": "/nowhere"} if shape.input_len is None else {"path": "/nowhere", "input_column": "source"}
    return RunConfig.model_validate(
        {
            "run": "gpu-check",
            "seed": 1337,
            "storage": "/nowhere",
            "data": {
                "sources": [source],
                "seq_len": shape.seq_len,
                "input_len": shape.input_len,
                "tokenizer": {"kind": "bytes"},
            },
            "model": shape.model,
            "train": {
                "steps": 1000,
                "global_batch_size": MICRO_BATCHES * shape.micro_batch_size,
                "micro_batch_size": shape.micro_batch_size,
                "lr": shape.lr,
                "precision": precision,
                "compile": compiled,
            },
            "scaling": {"gpus_per_worker": 1 if setting.on_gpu else 0},
        }
    )


def random_share(shape: Shape) -> FetchedShare:
    """All micro-batches of a step, as the feeder would give them to the only rank; no padding."""
    draw = np.random.default_rng(0)
    rows = shape.micro_batch_size

    def tokens(length: int) -> NDArray[np.uint16]:
        return draw.integers(1, shape.model["vocab_size"], (rows, length)).astype(np.uint16)

    batches = [
        MicroBatch(
            tokens(shape.seq_len + 1),
            np.full(rows, shape.seq_len, np.int64),
            np.arange(rows, dtype=np.int64),
            None if shape.input_len is None else tokens(shape.input_len),
            None if shape.input_len is None else np.full(rows, shape.input_len, np.int64),
        )
        for _ in range(MICRO_BATCHES)
    ]
    return FetchedShare(range(MICRO_BATCHES), batches, MICRO_BATCHES * rows * shape.seq_len)
