"""Runs Ray Train's `fit()` for one attempt, in a thread of the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import ray.train

from cluster.demand import remove_placement_groups
from cluster.local.ray import joins_cluster
from data.stores.shard_file import filesystem_for
from orchestrator.errors import WorkerDiedError
from orchestrator.nodes.requests import NodeRequests, placement_group_name
from orchestrator.policy.scaling import scaling_policy
from orchestrator.run.job import TrainJob
from orchestrator.run.run import Run
from orchestrator.train.entry import prepare_worker, train_worker
from orchestrator.workers.failure_causes import describe_death
from orchestrator.workers.hooks import BeatHook, RetryHook, SizeHook, TokenizingHook
from orchestrator.workers.process_group import TIMEOUT_S, ProcessGroupConfig
from orchestrator.workers.ray_train import WorkerGroupTrainer
from orchestrator.workers.warm import WarmWorkers

RAY_TRAIN_FOLDER = "ray-train/"
"""Folder of Ray Train's own records; deleted at the end, since a run resumes from its checkpoints alone."""


class TrainerThread(threading.Thread):
    """Ray Train's `fit()`, in a thread because it handles Ctrl-C itself when it runs in the main one.

    Where Ray Train's controller dies, and the workers with it, another one starts them again.

    Args:
        tokenizes: the run tokenizes during training.
        warm: see `WorkerGroupTrainer`.

    Attributes:
        error: what `fit()` raised.
        at_end: called, in this thread, when it has ended.
    """

    def __init__(self, run: Run, job: TrainJob, *, tokenizes: bool, warm: WarmWorkers | None = None) -> None:
        super().__init__(name="trainer", daemon=True)
        self._run, self._job, self._tokenizes, self._warm = run, job, tokenizes, warm
        self._lives = 1
        self._trainer = worker_group_trainer(run, job, tokenizes=tokenizes, warm=warm)
        self.error: BaseException | None = None
        self.has_ended = False
        self.at_end: Callable[[], object] = lambda: None

    def run(self) -> None:
        """The thread's body."""
        try:
            while not self._fit():
                continue
        except BaseException as error:  # raised in the driver's main thread
            self.error = error
        self.has_ended = True
        self.at_end()

    def _fit(self) -> bool:
        """Runs `fit()`; returns False if the controller died and has a successor."""
        try:
            self._trainer.fit()
        except ray.exceptions.RayActorError as death:
            reason = f"Ray Train's controller died: {describe_death(death)}"
            if not ray.get(self._job.monitor.restart_after_failure.remote("crash", reason)):
                raise WorkerDiedError(reason) from death
            if joins_cluster():  # else those of its requests for nodes stay
                remove_placement_groups(placement_group_name(self._run.config.run))
            self._lives += 1
            self._trainer = worker_group_trainer(
                self._run, self._job, tokenizes=self._tokenizes, life=self._lives, warm=self._warm
            )
            return False
        return True


def worker_group_trainer(
    run: Run, job: TrainJob, *, tokenizes: bool, life: int = 1, warm: WarmWorkers | None = None
) -> WorkerGroupTrainer:
    """Builds the trainer of an attempt; its hooks call the monitor and the feeder.

    Args:
        warm: see `WorkerGroupTrainer`.
        life: 1 for the first of the attempt, 2 for its successor, and so on.
    """
    scaling = run.config.scaling
    filesystem, path = filesystem_for(run.store.url_of(RAY_TRAIN_FOLDER.rstrip("/")), run.config.store)
    return WorkerGroupTrainer(
        train_worker,
        own_cluster=not joins_cluster(),
        node_requests=NodeRequests(
            placement_group_name(run.config.run, job.attempt),
            scaling.per_worker,
            min_workers=scaling.effective_min_workers,
            max_workers=scaling_policy(run.config).most_useful_workers,
        ),
        tokenizes=TokenizingHook(job.feeder, is_done=not tokenizes),
        retry=RetryHook(job.monitor),
        size=SizeHook(job.monitor),
        prepare=partial(prepare_worker, job),
        send=BeatHook(job.monitor),
        warm=warm,
        train_loop_config={"job": job},
        # Ranks may wait for one of them that waits for the store.
        backend_config=ProcessGroupConfig(scaling.on_gpu, TIMEOUT_S + run.config.store.patience),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.effective_max_workers,
            use_gpu=scaling.on_gpu,
            resources_per_worker=scaling.per_worker,
        ),
        # A name of its own keeps Ray Train from resuming anything by itself.
        run_config=ray.train.RunConfig(
            name=f"attempt-{job.attempt}-{life}", storage_path=path, storage_filesystem=filesystem
        ),
    )
