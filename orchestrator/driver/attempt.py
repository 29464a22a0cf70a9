"""One attempt at a run, in the driver: starts the actors and the Ray Train worker group, and follows their progress."""

from __future__ import annotations

import uuid
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from cluster.demand import remove_placement_groups
from cluster.local.ray import joins_cluster
from cluster.ray_nodes import driver_node_id, on_node, quiet_driver, root_cause
from data.errors import MantaError
from data.feed.feeder import Feeder
from data.order.sample_order import UNKNOWN
from data.prepared import PreparedData
from data.stores.patience import Outage
from orchestrator.config.result_fields import resolved
from orchestrator.console import Console
from orchestrator.driver.attempt_record import AttemptRecord
from orchestrator.driver.background_evaluation import BackgroundEvaluation, can_evaluate_in_background
from orchestrator.driver.flops import FlopsPerToken
from orchestrator.driver.last_save import ACTOR_TIMEOUT_S, free_memory, save_last_state
from orchestrator.driver.monitor import Monitor
from orchestrator.driver.stop_requests import StopRequests
from orchestrator.driver.trainer import RAY_TRAIN_FOLDER, TrainerThread
from orchestrator.errors import FencedError
from orchestrator.nodes.capacity import refuse_small_cluster
from orchestrator.nodes.requests import placement_group_name
from orchestrator.nodes.watch import NodeWatch
from orchestrator.observe.observer import Observer
from orchestrator.policy.scaling import scaling_policy
from orchestrator.run.fence import Fence
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.job import TrainJob
from orchestrator.run.progress import Progress
from orchestrator.run.run import Run, feed_spec
from orchestrator.run.vocabulary import vocabulary_of
from orchestrator.snapshots.agent import SnapshotAgent
from orchestrator.snapshots.store import remove_attempt
from orchestrator.workers.failure_causes import to_manta_error

POLL_S, STARTING_POLL_S = 1.0, 0.25
"""Seconds between two polls of the monitor, after the first step and before: on two cores, polling slows the loop."""

FEEDER_RESTARTS = 3
"""Deaths of the feeder that a run survives; more than that is no accident."""

AGENT_THREADS = 4
"""Concurrent calls of a snapshot agent: an upload, and the calls of a group that starts at the same time."""


def run_attempt(
    run: Run,
    heartbeat: Heartbeat,
    data: PreparedData,
    console: Console,
    requests: StopRequests,
    poll_s: float = POLL_S,
    watch: NodeWatch | None = None,
) -> None:
    """Trains until the end, a request to stop or an error, and writes the outcome into the run's record.

    Args:
        heartbeat: of the attempt; its fence is held.
        requests: source of requests to stop.
        poll_s: seconds between two polls of the monitor, and between two reports of the loop.
        watch: logs what the run waits for while it has no workers.

    Raises:
        KeyboardInterrupt: stopped on request; all completed steps are saved.
        MantaError: the error that ended the loop, or that a worker died.
    """
    tokenizes = bool((data.counts() == UNKNOWN).any())
    refuse_small_cluster(run.config.scaling, tokenizes=tokenizes)
    quiet_driver()
    feeder, monitor = start_actors(run, data)
    job = train_job(run, heartbeat.fence, data, feeder, monitor, poll_s)
    trainer = TrainerThread(run, job, tokenizes=tokenizes)
    observer = Observer(run, console.line)
    record = AttemptRecord(heartbeat, console, run, observer, FlopsPerToken(run.config, job.vocabulary, feeder))
    monitor.agent_of.remote(driver_node_id(), job)  # of the usual node of workers; on others, a worker starts it
    try:
        with requests.saving(), closing(console):
            progress = _Attempt(run, console, monitor, trainer, record).follow(requests, watch, poll_s)
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


@dataclass(frozen=True)
class _Attempt:
    """An attempt whose actors run."""

    run: Run
    console: Console
    monitor: Any
    trainer: TrainerThread
    record: AttemptRecord

    def follow(self, requests: StopRequests, watch: NodeWatch | None, poll_s: float) -> Progress:
        """Trains, shows and records the progress, and passes on requests to stop; returns the progress at the end.

        Raises:
            KeyboardInterrupt: stopped on request while there were no workers.
            MantaError: see `run_attempt`.
        """
        steps, trainer = self.run.config.train.steps, self.trainer
        trainer.at_end = requests.wake
        trainer.start()
        while not trainer.has_ended:
            requests.wait(poll_s if self.record.has_begun else STARTING_POLL_S)
            progress = self._progress()
            self.record.follow(progress)
            if watch is not None:
                watch.need = self.run.config.scaling.per_worker if progress.waits_for_nodes else None
            if requests.pop_new():
                self.monitor.request_stop.remote()
                self.console.line("saving, then stopping; Ctrl-C again leaves at once, without saving.")
            if requests.any and not progress.has_workers:
                save_last_state(self.monitor, progress, self.console)
                self.record.finish(progress, steps)
                raise KeyboardInterrupt
        progress = self._progress()
        self.record.follow(progress, force=trainer.error is not None)
        if trainer.error is not None:
            if root_cause(trainer.error, FencedError) is None:
                save_last_state(self.monitor, progress, self.console)
            raise to_manta_error(trainer.error, progress)
        self.record.finish(progress, steps)
        return progress

    def _progress(self) -> Progress:
        progress: Progress = ray.get(self.monitor.progress.remote(), timeout=ACTOR_TIMEOUT_S)
        return progress


def start_actors(run: Run, data: PreparedData) -> tuple[Any, Any]:
    """Starts feeder and monitor, on the driver's own node, which is the last to be reclaimed."""
    here = {"num_cpus": 0, **on_node(driver_node_id())}
    # A restarted feeder has the same spec, and makes the same steps.
    restarts = {"max_restarts": FEEDER_RESTARTS, "max_task_retries": FEEDER_RESTARTS}
    config = run.config
    scaling = scaling_policy(config)
    start_evaluation = BackgroundEvaluation if can_evaluate_in_background(config) else None
    name = f"monitor-{uuid.uuid4()}"
    monitor: Any = ray.remote(Monitor).options(**here, name=name)
    monitor = monitor.remote(scaling, config.train.steps, start_agent, start_evaluation)
    # By name: Ray warns, on the terminal, of actors that may restart and received the handle of another one.
    tell = partial(report_outage, name, "reading shards and tokens")
    feeder: Any = ray.remote(Feeder)
    return feeder.options(**here, **restarts).remote(feed_spec(run, data), tell), monitor


def report_outage(monitor: str, doing: str, outage: Outage | None) -> None:
    """Reports to the monitor of that name that a store fails, or answers again (None); see `LoopInterface`."""
    with suppress(ValueError):  # the monitor is gone, and with it the attempt
        ray.get_actor(monitor).report_outage.remote(doing, outage)


def start_agent(node_id: str, job: TrainJob) -> Any:
    """Starts the snapshot agent of a node; called by the monitor, with which the agent ends."""
    here = {"num_cpus": 0, **on_node(node_id), "max_concurrency": AGENT_THREADS}
    return ray.remote(SnapshotAgent).options(**here).remote(job, node_id)


def train_job(run: Run, fence: Fence, data: PreparedData, feeder: Any, monitor: Any, report_every_s: float) -> TrainJob:
    """Builds the TrainJob that every worker receives."""
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
