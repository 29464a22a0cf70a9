"""The baseline of `manta chaos`: the same model on stock Ray Train with the elastic settings of its documentation.

Runs as a program with the arguments CONFIG LOG MIN MAX. Rank 0 appends a line to LOG for every
step. The data is random, since restarts are compared, not losses.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.local.ray import pinned_packages

VOCAB_SIZE = 2048

SAVE_EVERY_S = 10.0
"""Seconds between two checkpoints, which are all that stock Ray Train keeps across a restart."""


def loop(settings: dict[str, Any]) -> None:
    """Trains on one worker with DDP, from the newest checkpoint on, and saves one every SAVE_EVERY_S."""
    import ray.train
    import ray.train.torch
    import torch

    from model.optim.optimizer import build_optimizer
    from orchestrator.config.recipe import RunConfig
    from orchestrator.evaluation.forward import build_model
    from orchestrator.run.vocabulary import Vocabulary

    config = RunConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.scaling.threads)
    model = build_model(config, Vocabulary(VOCAB_SIZE, 0))
    optimizer = build_optimizer(model, config.train.optimizer, config.train.lr)
    step, saved_at = 0, time.monotonic()
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    ddp = ray.train.torch.prepare_model(model)
    while True:
        torch.manual_seed(step)
        for _ in range(rank, config.train.micro_batches_per_step, world_size):
            tokens = torch.randint(VOCAB_SIZE, (config.train.micro_batch_size, config.data.seq_len + 1))
            ddp(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if rank == 0:
            with open(settings["log"], "a") as log:
                log.write(json.dumps({"step": step, "at": time.time(), "world_size": world_size}) + "\n")
        due = torch.tensor(float(time.monotonic() - saved_at > SAVE_EVERY_S))
        torch.distributed.broadcast(due, 0)
        if due:
            saved_at = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, Path(folder) / "state.pt")
                saved = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                ray.train.report({"step": step}, checkpoint=saved)


def main() -> None:
    """Trains until the process is killed; arguments: config, log, and the bounds of the number of workers."""
    config_path, log, min_workers, max_workers = sys.argv[1:]
    import ray
    import ray.train
    import ray.train.torch

    ray.init(log_to_driver=False, runtime_env=pinned_packages())
    ray.train.torch.TorchTrainer(
        loop,
        train_loop_config={"config": json.loads(Path(config_path).read_text()), "log": log},
        scaling_config=ray.train.ScalingConfig(num_workers=(int(min_workers), int(max_workers))),  # type: ignore[arg-type]
        run_config=ray.train.RunConfig(
            name="stock",
            storage_path=str(Path(log).parent / "stock-ray"),
            failure_config=ray.train.FailureConfig(max_failures=-1),
        ),
    ).fit()
