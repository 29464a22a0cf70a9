"""A plain training loop in one file: torch, numpy and the model, without Ray, storage or records.

`bench_training.py` compares manta with it. It does what a careful person would write by hand: batches at random
positions of an array of tokens in memory, gradients accumulated over micro-batches, norm clipped, fused AdamW, the
recipe's schedule, one all-reduce a step under DDP. The model, loss included, is the project's own class.

    python bench/plain_loop.py SETTINGS.json        as written by bench_training.py

Prints JSON: {"step_s": seconds of every step, "losses": ...}. With `processes` > 1 it is a DDP loop over Gloo.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from model.config import ModelConfig
from model.optim.config import ScheduleConfig
from model.optim.schedule import learning_rate
from model.transformer import Transformer


def train(rank: int, settings: dict[str, Any]) -> None:
    """One process of the loop; rank 0 prints the result."""
    processes, seq_len = settings["processes"], settings["seq_len"]
    micro_batches = settings["global_batch_size"] // settings["micro_batch_size"] // processes
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    if processes > 1:
        dist.init_process_group("gloo", init_method=settings["init_method"], rank=rank, world_size=processes)

    model = Transformer(ModelConfig(**settings["model"]), settings["vocab_size"], seq_len, settings["end_of_text"])
    network = DistributedDataParallel(model, gradient_as_bucket_view=True) if processes > 1 else model
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embedding" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embedding" in name]
    adamw = settings["optimizer"]
    groups = [{"params": matrices, "weight_decay": adamw["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=adamw["betas"], eps=adamw["eps"], fused=True)
    schedule = ScheduleConfig(**settings["schedule"])

    tokens = np.load(settings["tokens"])
    random = np.random.default_rng(settings["seed"] + rank)
    targets_per_step = settings["global_batch_size"] * seq_len
    step_s, losses = [], []
    for step in range(settings["steps"]):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, settings["lr"], step, settings["schedule_steps"])
        loss_sum = 0.0
        for micro_step in range(micro_batches):
            starts = random.integers(0, len(tokens) - seq_len - 1, settings["micro_batch_size"])
            batch = torch.from_numpy(np.stack([tokens[s : s + seq_len + 1] for s in starts]).astype(np.int64))
            last = micro_step == micro_batches - 1
            with nullcontext() if last or processes == 1 else network.no_sync():
                loss = network(batch[:, :-1], batch[:, 1:])
                # DDP averages over processes, so each counts its part in full.
                (loss * processes / targets_per_step).backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=processes == 1)  # under DDP the gradients are views into its buckets
        losses.append(loss_sum / (micro_batches * settings["micro_batch_size"] * seq_len))
        step_s.append(time.perf_counter() - began)
    if rank == 0:
        print(json.dumps({"step_s": step_s, "losses": losses}), flush=True)
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    """Starts the processes."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    if settings["processes"] == 1:
        train(0, settings)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings["init_method"] = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    torch.multiprocessing.spawn(train, (settings,), settings["processes"])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main()
