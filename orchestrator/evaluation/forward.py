"""Builds a run's model and its inputs from a micro-batch; shared by training, evaluation and generation."""

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
    """Builds the run's model with its weights before step 0, a function of config and seed."""
    torch.manual_seed(config.seed)
    rows, end_of_text, input_rows = vocabulary
    data = config.data
    if config.model.architecture == "decoder":
        return Transformer(config.model, rows, data.seq_len, end_of_text)
    return Seq2Seq(config.model, rows, input_rows, data.seq_len, data.most_input_tokens, end_of_text)


def model_inputs(batch: MicroBatch, device: torch.device) -> tuple[Tensor, ...]:
    """Arguments of the model's forward pass.

    Returns:
        tokens (B, T) int64 and targets (B, T) int64, where padding is IGNORED_TARGET. For an encoder-decoder these
        follow its inputs (B, S) int64 and their token counts (B,) int64.
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
    """Context for forward passes in the precision of the recipe, `train.precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def worker_device(config: RunConfig) -> torch.device:
    """The GPU that Ray assigned to this worker, or the CPU."""
    if not config.scaling.on_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # slow to import

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """CUDA's name of the GPU; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seed_dropout(config: RunConfig, step: int, micro_step: int) -> None:
    """Seeds torch so that dropout is a function of (seed, step, micro-batch) on any rank."""
    if config.model.dropout > 0:
        digest = hashlib.blake2b(f"{config.seed}/{step}/{micro_step}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
