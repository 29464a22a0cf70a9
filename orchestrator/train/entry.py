"""The functions that Ray Train calls in a worker's process: preparation before it joins a group, then the loop.

A short module of its own: the driver imports it to hand the functions to Ray, and must not import torch.
"""

from __future__ import annotations

import ray

from orchestrator.run.job import TrainJob
from orchestrator.workers.beacon import mark


def prepare_worker(job: TrainJob) -> None:
    """Imports the training loop, torch included, before a group needs it, while the node's agent starts; takes seconds.

    The answer about the agent is not waited for: the worker asks again when it joins a group.
    """
    job.monitor.agent_of.remote(ray.get_runtime_context().get_node_id(), job)
    if not job.config.train.compile:
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
