"""The functions that Ray Train calls in a worker's process: preparation before it joins a group, then the loop.

A short module of its own: the driver imports it to hand the functions to Ray, and must not import torch.
"""

from __future__ import annotations

from orchestrator.config.recipe import RunConfig
from orchestrator.run.job import TrainJob
from orchestrator.workers.beacon import mark


def prepare_worker(config: RunConfig) -> None:
    """Imports the training loop, torch included, before a group needs it; takes seconds."""
    if not config.train.compile:
        from model.eager import skip_compiler

        skip_compiler()
    import orchestrator.train.loop  # noqa: F401


def train_worker(worker_config: dict[str, TrainJob]) -> None:
    """Entry point of a Ray Train worker, in a process that has run `prepare_worker`.

    Raises:
        see `orchestrator.train.loop.train_loop`.
    """
    from orchestrator.train.loop import train_loop
    from orchestrator.train.peer_failure import leaving_group_on_error

    try:
        with leaving_group_on_error():
            train_loop(worker_config["job"])
    finally:
        mark("idle")
