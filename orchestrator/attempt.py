"""One attempt at a run, seen from the driver: actors, the Ray Train worker group, signs of life, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train

from cluster.demand import remove_gangs
from cluster.local_ray import joins_cluster
from data.errors import MantaError, TransientStoreError
from data.feeder import Feeder
from data.prepare import PreparedData
from data.ray_internals import driver_node_id, on_node, quiet_driver, root_cause
from data.sample_order import UNKNOWN
from data.shard_file import filesystem_for
from orchestrator.cluster_size import refuse_small_cluster
from orchestrator.config import resolved
from orchestrator.console import Console
from orchestrator.errors import FencedError
from orchestrator.evaluation_beside import EvaluationBeside, has_room_beside
from orchestrator.failures import Retry, Size, Tokenizes, in_our_words, one_line
from orchestrator.job import TrainJob, prepare_worker, train_worker
from orchestrator.monitor import Monitor, Progress
from orchestrator.node_keeper import NodeKeeper
from orchestrator.node_memory import forget_attempt
from orchestrator.node_wait import NodeWait, gangs_of
from orchestrator.node_watch import NodeWatch
from orchestrator.observe.flops import Flops
from orchestrator.observe.observer import Observer
from orchestrator.process_group import ProcessGroupConfig
from orchestrator.ray_train_internals import WorkerGroupTrainer
from orchestrator.run import Run, feed_spec
from orchestrator.run_record import HEARTBEAT_S, PRESUMED_DEAD_S, Attempt, Fence
from orchestrator.scaling_policy import scaling_policy
from orchestrator.vocabulary import vocabulary_of

POLL_S, STARTING_POLL_S = 1.0, 0.25
"""Seconds between two looks at the loop: on two cores, looking takes time from what is looked at."""

RAY_TRAIN_FOLDER = "ray-train/"
"""Where Ray Train keeps books of its own; of no use to a run whose checkpoints are the only truth, and deleted."""

FEEDER_RESTARTS = 3
"""Deaths of the feeder that a run gets over; more are no accident."""

KEEPER_THREADS = 4
"""Calls of a keeper that run side by side: an upload, and whatever a group that starts meanwhile asks."""

RESCUE_S = 60.0
"""Seconds that a last save of what the nodes hold may take, where there are no workers to do it."""

DISCARD_S = 5.0
"""Seconds that nodes may take to free their memory at the end; those that are gone never answer."""

ACTOR_TIMEOUT_S = 60.0
"""Seconds an actor on the driver's own node may take to answer."""


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
    life = _Life(fence, console, run, observer, Flops(run.config, job.vocabulary, feeder))
    monitor.keeper_of.remote(driver_node_id(), job)  # here most of the time; elsewhere, when a worker asks
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
                    rescue(monitor, progress, console)
                    life.finish(progress, run.config.train.steps)
                    raise KeyboardInterrupt
            progress = ray.get(monitor.progress.remote(), timeout=ACTOR_TIMEOUT_S)
            life.follow(progress, force=trainer.error is not None)
            if trainer.error is not None:
                if root_cause(trainer.error, FencedError) is None:
                    rescue(monitor, progress, console)
                raise in_our_words(trainer.error, progress)
            life.finish(progress, run.config.train.steps)
        if progress.result is not None and progress.result["step"] < run.config.train.steps:
            raise KeyboardInterrupt
    finally:
        observer.close("failed")
        free_memory(monitor)
        if joins_cluster():
            remove_gangs(gangs_of(run.config.run))
        forget_attempt(run.store.url_of(""), job.attempt)
        with suppress(MantaError):
            run.store.delete_prefix(RAY_TRAIN_FOLDER)


def rescue(monitor: Any, progress: Progress, console: Console) -> None:
    """Save the newest state that a node holds, where there are no workers that could; as far as that can be done."""
    if progress.restored_step is None:
        return
    keepers = ray.get(monitor.keepers.remote(), timeout=ACTOR_TIMEOUT_S)
    found = []
    for keeper in keepers.values():
        with suppress(ray.exceptions.RayError):
            found.append((ray.get(keeper.newest.remote(), timeout=ACTOR_TIMEOUT_S)[0], keeper))
    step, keeper = max(found, key=lambda each: each[0], default=(-1, monitor))
    if step <= progress.restored_step:
        return
    try:
        ray.get(keeper.save.remote(step), timeout=RESCUE_S)
        console.line(f"step {step}: saved from a node's memory.")
    except (MantaError, ray.exceptions.RayError) as error:
        console.line(f"step {step}: could not be saved from a node's memory: {one_line(error)[-300:]}")


def free_memory(monitor: Any) -> None:
    """Have every node let go of its snapshots: no later attempt goes on from them."""
    with suppress(ray.exceptions.RayError):
        keepers = ray.get(monitor.keepers.remote(), timeout=DISCARD_S).values()
        discarding = [keeper.discard.remote() for keeper in keepers]
        ray.wait(discarding, num_returns=len(discarding), timeout=DISCARD_S)


def start_actors(run: Run, data: PreparedData) -> tuple[Any, Any]:
    """Feeder and monitor, on the driver's own node, which is the last to be reclaimed."""
    here = {"num_cpus": 0, **on_node(driver_node_id())}
    # A feeder that dies is made anew from the same spec, and makes the same steps.
    restarts = {"max_restarts": FEEDER_RESTARTS, "max_task_retries": FEEDER_RESTARTS}
    feeder = ray.remote(Feeder).options(**here, **restarts).remote(feed_spec(run, data))
    config = run.config
    scaling = scaling_policy(config)
    evaluate = EvaluationBeside if has_room_beside(config) else None
    return feeder, ray.remote(Monitor).options(**here).remote(scaling, config.train.steps, start_keeper, evaluate)


def start_keeper(node_id: str, job: TrainJob) -> Any:
    """Start the keeper of a node; called by the monitor, with which it ends."""
    here = {"num_cpus": 0, **on_node(node_id), "max_concurrency": KEEPER_THREADS}
    return ray.remote(NodeKeeper).options(**here).remote(job, node_id)


def train_job(run: Run, fence: Fence, data: PreparedData, feeder: Any, monitor: Any, tell_every_s: float) -> TrainJob:
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
        tell_every_s=tell_every_s,
        init=fence.record.init,
    )


class _Trainer(threading.Thread):
    """Ray Train's `fit()`. In a thread, because it takes Ctrl-C for itself when it runs in the main one."""

    def __init__(self, run: Run, job: TrainJob, tokenizes: bool) -> None:
        super().__init__(name="trainer", daemon=True)
        scaling, most = run.config.scaling, scaling_policy(run.config).most_of_use
        filesystem, path = filesystem_for(run.store.url_of(RAY_TRAIN_FOLDER.rstrip("/")), run.config.store)
        self._trainer = WorkerGroupTrainer(
            train_worker,
            own_cluster=not joins_cluster(),
            wait=NodeWait(gangs_of(run.config.run, job.attempt), scaling.per_worker, scaling.fewest, most),
            tokenizes=Tokenizes(job.feeder, is_done=not tokenizes),
            retry=Retry(job.monitor),
            size=Size(job.monitor),
            prepare=partial(prepare_worker, run.config),
            train_loop_config={"job": job},
            backend_config=ProcessGroupConfig(use_gpu=scaling.on_gpu),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.most, use_gpu=scaling.on_gpu, resources_per_worker=scaling.per_worker
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


_CAUSE_OF_PHASE = {
    "done": "shutdown",
    "restarting": "restart",
    "waiting": "restart",
    "waiting for data": "data_wait",
    "evaluating": "evaluation",
    "saving": "checkpoint",
}
"""Where the seconds go that the loop has not reported yet."""


class _Life:
    """The attempt's life as the record and the terminal tell it."""

    def __init__(self, fence: Fence, console: Console, run: Run, observer: Observer, flops: Flops) -> None:
        self._fence, self._console, self._run = fence, console, run
        self._observer, self._flops = observer, flops
        self._began = time.monotonic() - (time.time() - fence.record.last.started_at)
        self._told_at = time.monotonic() - HEARTBEAT_S
        self._first_step_s: float | None = None
        self._startup_s: float | None = None
        self._notes = 0
        self._had_workers = False

    def follow(self, progress: Progress, *, force: bool = False) -> None:
        """Show the loop's progress, and give a sign of life when one is due.

        Raises:
            FencedError: a newer attempt has taken the run over.
            TransientStoreError: the store has not taken a sign of life for PRESUMED_DEAD_S.
        """
        # The loop's clock began with the loop and counts its own start; what came before is the rest.
        if self._startup_s is None and progress.goodput:
            self._startup_s = max(0.0, self._age_s() - sum(progress.goodput.values()))
        if self._first_step_s is None and progress.row:
            self._first_step_s = self._age_s()
        for line in progress.notes[self._notes :]:
            self._console.line(line)
        self._notes = len(progress.notes)
        self._console.progress(progress, self._run.config.train.steps)
        # At once where it went on from: from there on, nothing an earlier attempt may still write belongs to the run.
        restored = progress.restored_step is not None and self._fence.record.last.from_step is None
        # At once, too, when the workers are gone or back.
        changed = progress.has_workers != self._had_workers
        if force or restored or changed or time.monotonic() - self._told_at >= HEARTBEAT_S:
            try:
                self._fence.update(attempt=self._fields(progress))
                self._told_at, self._had_workers = time.monotonic(), progress.has_workers
            except TransientStoreError:
                if time.monotonic() - self._told_at > PRESUMED_DEAD_S:
                    raise
        self._observer.follow(self._attempts(progress), progress)

    @property
    def has_begun(self) -> bool:
        """Whether a step has been done."""
        return self._first_step_s is not None

    def finish(self, progress: Progress, steps: int) -> None:
        """Write how the attempt ended."""
        result = progress.result or {}
        status = "finished" if result.get("step") == steps else "stopped"
        self._fence.update(
            attempt={**self._fields(progress), "status": status}, result=result if status == "finished" else {}
        )
        self._observer.follow(self._fence.record.attempts, progress, now=True)
        self._observer.close(status, result)

    def _attempts(self, progress: Progress) -> tuple[Attempt, ...]:
        """Those of the record, the last as it would be told of now."""
        *before, last = self._fence.record.attempts
        return (*before, replace(last, heartbeat_at=time.time(), **self._fields(progress)))

    def _age_s(self) -> float:
        """Seconds since the command was given."""
        return time.monotonic() - self._began

    def _fields(self, progress: Progress) -> dict[str, Any]:
        age_s = self._age_s()
        startup_s = self._startup_s if self._startup_s is not None else age_s
        loop_s = sum(progress.goodput.values())
        # The loop's clock stands still between its reports: what is left of the wall clock belongs to where it is now.
        rest = max(0.0, age_s - startup_s - loop_s)
        goodput = dict(progress.goodput) | {"startup": progress.goodput.get("startup", 0.0) + startup_s}
        cause = _CAUSE_OF_PHASE.get(progress.phase, "training")
        goodput[cause] = goodput.get(cause, 0.0) + rest
        return {
            "status": "running" if progress.restored_step is not None else "preparing",
            "from_step": progress.restored_step,
            "step": progress.row.get("step", progress.restored_step or 0),
            "world_size": progress.world_size if progress.has_workers else 0,
            "device": progress.device,
            "flops_per_token": self._flops.per_token if progress.row else None,
            "phase": progress.phase,
            "disruptions": [disruption.story() for disruption in progress.disruptions],
            "decisions": progress.decisions,
            "evaluations": progress.evaluations,
            "first_step_s": self._first_step_s,
            "goodput": goodput,
        }


class StopRequests:
    """Ctrl-C and SIGTERM as they come in, or what asks for an end instead of them."""

    def __init__(self) -> None:
        self._count = self._told = 0
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the wait that goes on, or the next one."""
        self._woken.set()

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, `wake` is called, or the time is over."""
        self._woken.wait(seconds)
        self._woken.clear()

    def ask(self) -> None:
        """Ask for an end; state is saved first."""
        self._count += 1
        self.wake()

    def handle(self, _signal: int, _frame: object) -> None:
        """Signal handler: the first asks for an end, the second insists."""
        self.ask()
        if self._count > 1:
            raise KeyboardInterrupt

    @property
    def any(self) -> bool:
        """Whether one has come."""
        return self._count > 0

    def pop_new(self) -> bool:
        """Whether one came since the last time this was asked."""
        new, self._told = self._count > self._told, self._count
        return new


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Signals that ask the run to stop are gathered inside the block instead of ending the process."""
    requests = StopRequests()
    previous = {number: signal.signal(number, requests.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
