"""The run's model, and a micro-batch as it enters it: what training, evaluation and generation share."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from data.order.packing import MicroBatch
from model.loss import IGNORED_TARGET
from model.seq2seq import Seq2Seq
from model.transformer import Transformer
from orchestrator.config.recipe import RunConfig
from orchestrator.run.vocabulary import Vocabulary


def build_model(config: RunConfig, vocabulary: Vocabulary) -> Transformer | Seq2Seq:
    """The run's model as it is before step 0: a function of config and seed."""
    torch.manual_seed(config.seed)
    rows, end_of_text, input_rows = vocabulary
    data = config.data
    if config.model.architecture == "decoder":
        return Transformer(config.model, rows, data.seq_len, end_of_text)
    return Seq2Seq(config.model, rows, input_rows, data.seq_len, data.most_input_tokens, end_of_text)


def model_inputs(batch: MicroBatch, device: torch.device) -> tuple[Tensor, ...]:
    """What the model's forward pass takes: (B, T) int64 tokens, and (B, T) int64 targets, padding as IGNORED_TARGET.

    Of pairs, (B, S) int64 inputs and their (B,) int64 counts come before these.
    """
    tokens = torch.from_numpy(batch.tokens.astype(np.int64))
    read, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[torch.arange(targets.shape[1]) >= torch.from_numpy(batch.target_counts)[:, None]] = IGNORED_TARGET
    decoder_side = read.to(device), targets.to(device)
    if batch.inputs is None or batch.input_counts is None:
        return decoder_side
    inputs, counts = torch.from_numpy(batch.inputs.astype(np.int64)), torch.from_numpy(batch.input_counts)
    return inputs.to(device), counts.to(device), *decoder_side


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Forward passes in bfloat16 where the recipe says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def worker_device(config: RunConfig) -> torch.device:
    """The GPU Ray gave this worker, or the CPU."""
    if not config.scaling.on_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # takes a while to import

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What a worker computes on, as CUDA names it; "cpu" without a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seed_dropout(config: RunConfig, step: int, micro_step: int) -> None:
    """Make dropout a function of (seed, step, micro-batch), whoever computes it."""
    if config.model.dropout > 0:
        digest = hashlib.blake2b(f"{config.seed}/{step}/{micro_step}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
