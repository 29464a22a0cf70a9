"""One attempt at a run, seen from the driver: starts the actors and the Ray Train worker group, and follows them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from typing import Any

import ray
import ray.train

from cluster.demand import remove_placement_groups
from cluster.local.ray import joins_cluster
from cluster.ray_nodes import driver_node_id, on_node, quiet_driver, root_cause
from data.errors import MantaError
from data.feed.feeder import Feeder
from data.order.sample_order import UNKNOWN
from data.prepare import PreparedData
from data.shards.file import filesystem_for
from orchestrator.config.result_fields import resolved
from orchestrator.console import Console
from orchestrator.driver.attempt_record import AttemptRecord
from orchestrator.driver.background_evaluation import BackgroundEvaluation, has_room_for_background_evaluation
from orchestrator.driver.last_save import ACTOR_TIMEOUT_S, free_memory, save_last_state
from orchestrator.driver.monitor import Monitor
from orchestrator.driver.stop_requests import StopRequests, stop_requests
from orchestrator.errors import FencedError
from orchestrator.nodes.capacity import refuse_small_cluster
from orchestrator.nodes.requests import NodeRequests, placement_group_name
from orchestrator.nodes.watch import NodeWatch
from orchestrator.observe.observer import Observer
from orchestrator.policy.scaling import scaling_policy
from orchestrator.run.fence import Fence
from orchestrator.run.job import TrainJob
from orchestrator.run.progress import Progress
from orchestrator.run.run import Run, feed_spec
from orchestrator.run.utilization import Flops
from orchestrator.run.vocabulary import vocabulary_of
from orchestrator.snapshots.agent import SnapshotAgent
from orchestrator.snapshots.store import remove_attempt
from orchestrator.train.entry import prepare_worker, train_worker
from orchestrator.workers.failure_causes import to_manta_error
from orchestrator.workers.hooks import Retry, Size, Tokenizes
from orchestrator.workers.process_group import ProcessGroupConfig
from orchestrator.workers.ray_train import WorkerGroupTrainer

POLL_S, STARTING_POLL_S = 1.0, 0.25
"""Seconds between two looks at the loop: on two cores, looking takes time from what is looked at."""

RAY_TRAIN_FOLDER = "ray-train/"
"""Where Ray Train keeps books of its own; of no use to a run whose checkpoints are the only truth, and deleted."""

FEEDER_RESTARTS = 3
"""Deaths of the feeder that a run gets over; more are no accident."""

AGENT_THREADS = 4
"""Calls of a agent that run side by side: an upload, and whatever a group that starts meanwhile asks."""


def run_attempt(
    run: Run,
    fence: Fence,
    data: PreparedData,
    console: Console,
    requests: StopRequests | None = None,
    poll_s: float = POLL_S,
    watch: NodeWatch | None = None,
) -> None:
    """Train until the end, a request to stop or an error; the run's record says how it went.

    Args:
        requests: where requests to stop come from; None: from Ctrl-C and SIGTERM, which only a main thread can take.
        poll_s: seconds between two looks at the loop, and from one word of the loop to the next.
        watch: tells what is waited for while there are no workers.

    Raises:
        KeyboardInterrupt: asked to stop; everything done is saved.
        MantaError: what ended the loop, or that a worker died.
    """
    tokenizes = bool((data.counts() == UNKNOWN).any())
    refuse_small_cluster(run.config.scaling, tokenizes=tokenizes)
    quiet_driver()
    feeder, monitor = start_actors(run, data)
    job = train_job(run, fence, data, feeder, monitor, poll_s)
    trainer = _Trainer(run, job, tokenizes)
    observer = Observer(run, console.line)
    life = AttemptRecord(fence, console, run, observer, Flops(run.config, job.vocabulary, feeder))
    monitor.agent_of.remote(driver_node_id(), job)  # here most of the time; elsewhere, when a worker asks
    try:
        with stop_requests() if requests is None else nullcontext(requests) as requests, closing(console):
            trainer.at_end = requests.wake
            trainer.start()
            while not trainer.has_ended:
                requests.wait(poll_s if life.has_begun else STARTING_POLL_S)
                progress: Progress = ray.get(monitor.progress.remote(), timeout=ACTOR_TIMEOUT_S)
                life.follow(progress)
                if watch is not None:
                    watch.need = run.config.scaling.per_worker if progress.waits_for_nodes else None
                if requests.pop_new():
                    monitor.request_stop.remote()
                    console.line("saving, then stopping; Ctrl-C again leaves at once, without saving.")
                if requests.any and not progress.has_workers:
                    save_last_state(monitor, progress, console)
                    life.finish(progress, run.config.train.steps)
                    raise KeyboardInterrupt
            progress = ray.get(monitor.progress.remote(), timeout=ACTOR_TIMEOUT_S)
            life.follow(progress, force=trainer.error is not None)
            if trainer.error is not None:
                if root_cause(trainer.error, FencedError) is None:
                    save_last_state(monitor, progress, console)
                raise to_manta_error(trainer.error, progress)
            life.finish(progress, run.config.train.steps)
        if progress.result is not None and progress.result["step"] < run.config.train.steps:
            raise KeyboardInterrupt
    finally:
        observer.close("failed")
        free_memory(monitor)
        if joins_cluster():
            remove_placement_groups(placement_group_name(run.config.run))
        remove_attempt(run.store.url_of(""), job.attempt)
        with suppress(MantaError):
            run.store.delete_prefix(RAY_TRAIN_FOLDER)


def start_actors(run: Run, data: PreparedData) -> tuple[Any, Any]:
    """Feeder and monitor, on the driver's own node, which is the last to be reclaimed."""
    here = {"num_cpus": 0, **on_node(driver_node_id())}
    # A feeder that dies is made anew from the same spec, and makes the same steps.
    restarts = {"max_restarts": FEEDER_RESTARTS, "max_task_retries": FEEDER_RESTARTS}
    feeder = ray.remote(Feeder).options(**here, **restarts).remote(feed_spec(run, data))
    config = run.config
    scaling = scaling_policy(config)
    evaluate = BackgroundEvaluation if has_room_for_background_evaluation(config) else None
    return feeder, ray.remote(Monitor).options(**here).remote(scaling, config.train.steps, start_agent, evaluate)


def start_agent(node_id: str, job: TrainJob) -> Any:
    """Start the agent of a node; called by the monitor, with which it ends."""
    here = {"num_cpus": 0, **on_node(node_id), "max_concurrency": AGENT_THREADS}
    return ray.remote(SnapshotAgent).options(**here).remote(job, node_id)


def train_job(run: Run, fence: Fence, data: PreparedData, feeder: Any, monitor: Any, report_every_s: float) -> TrainJob:
    """What the workers are told."""
    facts = {"config": resolved(run.config), **data.digests}
    if fence.record.init is not None:
        facts["init"] = fence.record.init
    done_before = max((attempt.step for attempt in fence.record.attempts[:-1]), default=0)
    return TrainJob(
        config=run.config,
        store=run.store,
        attempt=fence.record.last.number,
        vocabulary=vocabulary_of(run.config, data.tokenizer, data.job.input_tokenizer),
        done_before=done_before,
        facts=facts,
        feeder=feeder,
        monitor=monitor,
        report_every_s=report_every_s,
        init=fence.record.init,
    )


class _Trainer(threading.Thread):
    """Ray Train's `fit()`. In a thread, because it takes Ctrl-C for itself when it runs in the main one."""

    def __init__(self, run: Run, job: TrainJob, tokenizes: bool) -> None:
        super().__init__(name="trainer", daemon=True)
        scaling, most = run.config.scaling, scaling_policy(run.config).most_useful_workers
        filesystem, path = filesystem_for(run.store.url_of(RAY_TRAIN_FOLDER.rstrip("/")), run.config.store)
        self._trainer = WorkerGroupTrainer(
            train_worker,
            own_cluster=not joins_cluster(),
            wait=NodeRequests(
                placement_group_name(run.config.run, job.attempt),
                scaling.per_worker,
                scaling.effective_min_workers,
                most,
            ),
            tokenizes=Tokenizes(job.feeder, is_done=not tokenizes),
            retry=Retry(job.monitor),
            size=Size(job.monitor),
            prepare=partial(prepare_worker, run.config),
            train_loop_config={"job": job},
            backend_config=ProcessGroupConfig(use_gpu=scaling.on_gpu),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.effective_max_workers,
                use_gpu=scaling.on_gpu,
                resources_per_worker=scaling.per_worker,
            ),
            # A name per attempt keeps Ray Train from resuming anything by itself.
            run_config=ray.train.RunConfig(
                name=f"attempt-{job.attempt}", storage_path=path, storage_filesystem=filesystem
            ),
        )
        self.error: BaseException | None = None
        self.has_ended = False
        self.at_end: Callable[[], object] = lambda: None

    def run(self) -> None:
        """The thread's body."""
        try:
            self._trainer.fit()
        except BaseException as error:  # raised in the driver's main thread
            self.error = error
        self.has_ended = True
        self.at_end()
