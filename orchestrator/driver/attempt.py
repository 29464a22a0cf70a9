"""One attempt at a run, in the driver: starts the actors and the Ray Train worker group, and follows their progress."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.demand import remove_placement_groups
from cluster.local.ray import joins_cluster
from cluster.ray_nodes import driver_node_id, quiet_driver, root_cause
from data.errors import MantaError
from data.order.sample_order import UNKNOWN
from data.prepared import PreparedData
from orchestrator.config.result_fields import resolved
from orchestrator.console import Console
from orchestrator.driver.actors import end_actors, start_actors
from orchestrator.driver.attempt_record import AttemptRecord
from orchestrator.driver.flops import FlopsPerToken
from orchestrator.driver.last_save import ACTOR_TIMEOUT_S, free_memory, is_needed_later, save_last_state
from orchestrator.driver.shared_hosts import SharedProcesses
from orchestrator.driver.stop_requests import StopRequests
from orchestrator.driver.trainer import RAY_TRAIN_FOLDER, TrainerThread
from orchestrator.errors import FencedError, WorkerDiedError
from orchestrator.nodes.capacity import refuse_small_cluster
from orchestrator.nodes.requests import placement_group_name
from orchestrator.nodes.watch import NodeWatch
from orchestrator.observe.observer import Observer
from orchestrator.run.checkpoint import CREATED_AT
from orchestrator.run.fence import Fence
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.job import Owner, TrainJob
from orchestrator.run.progress import Progress
from orchestrator.run.run import Run
from orchestrator.run.vocabulary import vocabulary_of
from orchestrator.snapshots.store import remove_attempt
from orchestrator.workers.failure_causes import single_line, to_manta_error

POLL_S, STARTING_POLL_S = 1.0, 0.25
"""Seconds between two polls of the monitor, after the first step and before: on two cores, polling slows the loop."""


def run_attempt(
    run: Run,
    heartbeat: Heartbeat,
    data: PreparedData,
    console: Console,
    requests: StopRequests,
    poll_s: float = POLL_S,
    watch: NodeWatch | None = None,
    until: int | None = None,
    shared: SharedProcesses | None = None,
) -> None:
    """Trains until the end, a request to stop or an error, and writes the outcome into the run's record.

    Args:
        heartbeat: of the attempt; its fence is held.
        requests: source of requests to stop.
        poll_s: seconds between two polls of the monitor, and between two reports of the loop.
        watch: logs what the run waits for while it has no workers.
        until: step to stop after; default the last one.
        shared: processes that the run shares with others; None: it starts its own.

    Raises:
        KeyboardInterrupt: stopped on request, before that step; all completed steps are saved.
        MantaError: the error that ended the loop, or that a worker died.
    """
    tokenizes = bool((data.counts() == UNKNOWN).any())
    refuse_small_cluster(run.config.scaling, tokenizes=tokenizes)
    quiet_driver()
    until = until or run.config.train.steps
    hosts, warm = shared or (None, None)
    owner = Owner.of(run.store.url_of(""), heartbeat.fence.record)
    feeder, monitor = start_actors(run, data, owner, until, hosts)
    job = train_job(run, heartbeat.fence, data, feeder, monitor, poll_s, until)
    trainer = TrainerThread(run, job, tokenizes=tokenizes, warm=warm)
    observer = Observer(run, console.notice)
    record = AttemptRecord(heartbeat, console, run, observer, FlopsPerToken(run.config, job.vocabulary, feeder))
    monitor.agent_of.remote(driver_node_id(), job)  # of the usual node of workers; on others, a worker starts it
    attempt, keeps_memory = _Attempt(run, console, monitor, trainer, record), False
    try:
        with requests.saving(), closing(console):
            progress = attempt.follow(requests, watch, poll_s)
        if progress.result is not None and progress.result["step"] < until:
            raise KeyboardInterrupt
    except BaseException as error:
        keeps_memory = is_needed_later(error, attempt.progress, is_saved=attempt.is_saved)
        raise
    finally:
        observer.close("failed")
        if keeps_memory:
            console.line("the newest state stays in the nodes' memory: while they last, the same command continues it.")
        else:
            free_memory(monitor)
            remove_attempt(run.store.url_of(""), job.attempt)
        end_actors(run, owner, hosts)
        if joins_cluster():
            remove_placement_groups(placement_group_name(run.config.run))
        with suppress(MantaError):
            run.store.delete_prefix(RAY_TRAIN_FOLDER)


@dataclass
class _Attempt:
    """An attempt whose actors run.

    Attributes:
        progress: the newest that the monitor has told.
        is_saved: whether the last save, if there was one, succeeded.
    """

    run: Run
    console: Console
    monitor: Any
    trainer: TrainerThread
    record: AttemptRecord
    progress: Progress = field(default_factory=Progress)
    is_saved: bool = True

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
            progress = self._newest_progress()
            self.record.follow(progress)
            if watch is not None:
                watch.need = self.run.config.scaling.per_worker if progress.waits_for_nodes else None
            if requests.pop_new():
                self.monitor.request_stop.remote()
                self.console.line("saving, then stopping; Ctrl-C again leaves at once, without saving.")
            if requests.any and not progress.has_workers:
                self.is_saved = save_last_state(self.monitor, progress, self.console)
                self.record.finish(progress, steps)
                raise KeyboardInterrupt
        progress = self._newest_progress()
        self.record.follow(progress, force=trainer.error is not None)
        if trainer.error is not None:
            if root_cause(trainer.error, FencedError) is None:
                self.is_saved = save_last_state(self.monitor, progress, self.console)
            raise to_manta_error(trainer.error, progress)
        self.record.finish(progress, steps)
        return progress

    def _newest_progress(self) -> Progress:
        """The monitor's progress; that of the last call if it does not answer, as it may be starting again.

        Raises:
            WorkerDiedError: the monitor is gone for good.
        """
        try:
            self.progress = ray.get(self.monitor.progress.remote(self.record.logged), timeout=ACTOR_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            self.console.line(f"the monitor has not answered for {ACTOR_TIMEOUT_S:.0f} s")
        except ray.exceptions.RayActorError as error:
            raise WorkerDiedError(
                f"The monitor, an actor on this node, is gone: {single_line(error)[-300:]} The same command continues."
            ) from error
        return self.progress


def train_job(
    run: Run, fence: Fence, data: PreparedData, feeder: Any, monitor: Any, report_every_s: float, until: int
) -> TrainJob:
    """Builds the TrainJob that every worker receives."""
    facts = {"config": resolved(run.config), CREATED_AT: fence.record.created_at, **data.digests}
    if fence.record.init is not None:
        facts["init"] = fence.record.init
    done_before = max((attempt.step for attempt in fence.record.attempts[:-1]), default=0)
    return TrainJob(
        config=run.config,
        store=run.store,
        attempt=fence.record.last.number,
        owner=Owner.of(run.store.url_of(""), fence.record),
        vocabulary=vocabulary_of(run.config, data.tokenizer, data.job.input_tokenizer),
        until=until,
        done_before=done_before,
        evaluated=frozenset(each["step"] for attempt in fence.record.attempts for each in attempt.evaluations),
        facts=facts,
        feeder=feeder,
        monitor=monitor,
        report_every_s=report_every_s,
        init=fence.record.init,
    )
