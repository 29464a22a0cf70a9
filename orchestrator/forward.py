"""The run's model, and a micro-batch as it enters it: what training, evaluation and generation share."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from data.packing import MicroBatch
from model.loss import IGNORED_TARGET
from model.transformer import Transformer
from orchestrator.config import RunConfig


def build_model(config: RunConfig, vocab_size: int, end_of_text: int) -> Transformer:
    """The run's model as it is before step 0: a function of config and seed."""
    torch.manual_seed(config.seed)
    return Transformer(config.model, vocab_size, config.data.seq_len, end_of_text)


def inputs_and_targets(batch: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) int64 inputs, and (B, T) int64 targets with padding marked IGNORED_TARGET."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[torch.arange(targets.shape[1]) >= torch.from_numpy(batch.target_counts)[:, None]] = IGNORED_TARGET
    return inputs.to(device), targets.to(device)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Forward passes in bfloat16 where the recipe says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def seed_dropout(config: RunConfig, step: int, micro_step: int) -> None:
    """Make dropout a function of (seed, step, micro-batch), whoever computes it."""
    if config.model.dropout > 0:
        digest = hashlib.blake2b(f"{config.seed}/{step}/{micro_step}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
