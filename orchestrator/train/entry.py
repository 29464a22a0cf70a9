"""What Ray Train runs in a worker's process: preparation before it has a group, then the loop."""

from __future__ import annotations

from orchestrator.config.recipe import RunConfig
from orchestrator.errors import BadLossError
from orchestrator.run.job import PlannedRestart, TrainJob


def prepare_worker(config: RunConfig) -> None:
    """Import what training takes, in a worker's process, ahead of its use; seconds, most of them torch's."""
    if not config.train.compile:
        from model.eager import skip_compiler

        skip_compiler()
    import orchestrator.train.loop  # noqa: F401


def train_worker(worker_config: dict[str, TrainJob]) -> None:
    """Entry point of a Ray Train worker, in a process that `prepare_worker` has made ready.

    Raises:
        see `orchestrator.train.loop.train_loop`.
    """
    from orchestrator.train.loop import train_loop
    from orchestrator.workers.process_group import leave_group

    try:
        train_loop(worker_config["job"])
    except (PlannedRestart, BadLossError):  # all ranks have agreed on it, and none waits for another
        raise
    except BaseException:
        leave_group()  # a rank that waits for this one is to know at once
        raise
