"""A leg of a trial: a run that is driven up to a step, and reports on the way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.known_secrets import struck
from data.errors import DiskFullError, InputError, MantaError, StoreAccessError
from data.prepared import PreparedData
from data.stores.patience import Patience, telling
from data.stores.store import Store
from orchestrator.config.result_fields import result_fields
from orchestrator.driver.attempt import run_attempt
from orchestrator.driver.prepare import initial_weights_of
from orchestrator.driver.shared_hosts import SharedHosts, SharedProcesses
from orchestrator.driver.stop_requests import StopRequests
from orchestrator.driver.train import close_attempt
from orchestrator.errors import BadLossError, ClusterTooSmallError, RunInUseError
from orchestrator.printable import printable
from orchestrator.run.checkpoint import CheckpointName, list_checkpoints, refuse_lost_checkpoints
from orchestrator.run.fence import Fence
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.progress import Progress
from orchestrator.run.record import RECORD, RunRecord, load_record
from orchestrator.run.run import Group, Run, refuse_changed_config, stores
from orchestrator.run.stored import read_state
from orchestrator.run.vocabulary import parameters_of, vocabulary_of
from orchestrator.snapshots.fork import fork
from orchestrator.sweep.schedule.milestones import due, mean_loss, milestones
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial_record import Donor
from orchestrator.workers.warm import WarmWorkers

POLL_S, POLLS_PER_S = 0.1, 100
"""Seconds between two polls of a trial's loop, which bounds how late its reports and its end are seen; and the number
of polls that the process of all monitors gets in a second, where many trials run."""

STOP_S = 45.0
"""Seconds that a stopped trial may take to save and end; after that its process is killed."""


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Attributes:
        environment: environment variables of the sweep's process that the trials' actors need.
        hosts: of what a trial need not start for itself.
        group: the sweep, for trackers.
    """

    sweep: Sweep
    data: PreparedData
    environment: dict[str, str]
    hosts: SharedHosts
    group: Group


@dataclass(frozen=True)
class Assignment:
    """What a trial's actor has to run.

    Attributes:
        until: step at which the trial is paused, or its last one.
        max_workers: the trial's share of the worker slots; 0: the recipe's own scaling.max_workers.
        reported: newest step that was reported already.
        donor: checkpoint of another trial to start from.
        running: trials that run at present.
        seed: of the run; None: that of the recipe.
    """

    id: str
    run: str
    point: dict[str, Any]
    started_at: float
    until: int
    max_workers: int = 0
    reported: int = 0
    donor: Donor | None = None
    running: int = 1
    seed: int | None = None


@dataclass
class _LoopState:
    """The training loop at the last poll; shared by the trial's thread and Tune's thread."""

    step: int = 0
    restored_step: int = 0
    workers: int = 0
    worker_s: float = 0.0
    first_step_at: float | None = None
    losses: dict[int, float | None] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] | None = None


class Trial:
    """Runs an assignment in a thread of its own. It is also the run's console, through which it sees the progress."""

    def __init__(self, context: TrialContext, assignment: Assignment, workers: WarmWorkers) -> None:
        self.assignment, self._context, self._workers = assignment, context, workers
        self._requests = StopRequests()
        self._changed = threading.Condition()
        self._seen = _LoopState()
        self._polled_at = time.monotonic()
        self._setup_s: float | None = None
        self._parameters: int | None = None
        sweep = context.sweep
        self._milestones = [step for step in milestones(sweep) if assignment.reported < step <= assignment.until]
        self._attempt: int | None = None
        self._is_forked = False
        self._notices: list[str] = []
        self._thread = threading.Thread(target=self._train, name="trial", daemon=True)

    def next_result(self, timeout_s: float) -> dict[str, Any]:
        """The next report or the run's end; after `timeout_s` only the progress."""
        if not self._thread.ident:
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._seen.reports or self._seen.ended, timeout_s)
            seen = self._seen
            progress: dict[str, Any] = {
                "at_step": seen.step,
                "workers": seen.workers,
                "worker_s": seen.worker_s,
                "setup_s": self._setup_s,
                "parameters": self._parameters,
                "is_forked": self._is_forked,
                "first_step_s": seen.first_step_at and seen.first_step_at - self.assignment.started_at,
            }
            progress["notices"], self._notices = self._notices, []
            if seen.reports:
                return progress | seen.reports.pop(0)
            return progress | seen.ended | {"done": True} if seen.ended is not None else progress

    def stop(self) -> None:
        """Requests that the run saves and ends; returns when it has, or after STOP_S."""
        if self._thread.ident:
            self._requests.ask()
            self._thread.join(STOP_S)

    # The run's console, called in the trial's thread.

    def line(self, text: str) -> None:
        """Prints a line to the log of the trial's process."""
        print(printable(f"[{time.time() - self.assignment.started_at:6.1f} s] {text}"), flush=True)

    def notice(self, text: str) -> None:
        """Prints a line, and passes it on to the sweep's terminal."""
        self.line(text)
        with self._changed:
            self._notices.append(text)

    def close(self) -> None:
        """Does nothing: there is no live line to remove."""

    def progress(self, progress: Progress, steps: int) -> None:
        """Takes over the loop's progress, and adds the reports that are due."""
        now = time.monotonic()
        with self._changed:
            seen = self._seen
            if progress.has_workers:
                seen.worker_s += (now - self._polled_at) * progress.world_size
            self._polled_at = now
            seen.workers = progress.world_size if progress.has_workers else 0
            seen.restored_step = progress.restored_step or 0
            seen.losses.update(progress.losses)
            seen.evaluations.update({each["step"]: each["val_loss"] for each in progress.evaluations})
            if progress.row:
                if seen.first_step_at is None:
                    seen.first_step_at = progress.row["at"]
                seen.step = progress.row["step"]
            if progress.result and "val_loss" in progress.result:
                seen.evaluations[progress.result["step"]] = progress.result["val_loss"]
            self._report_due()

    def _report_due(self) -> None:
        """Adds the reports that are due; that of the leg's last step once its state is in storage."""
        sweep, seen = self._context.sweep, self._seen
        for milestone in due(self._milestones, seen.step):
            if milestone == self.assignment.until and self._attempt is None:
                return
            if sweep.spec.metric == "val_loss":
                if milestone not in seen.evaluations:
                    if milestone < seen.restored_step:  # its score was lost with the attempt that trained it
                        self._milestones.remove(milestone)
                        continue
                    return
                loss: float | None = seen.evaluations[milestone]
            else:
                loss = mean_loss(seen.losses, milestone, sweep.spec.window)
            self._milestones.remove(milestone)
            seen.reports.append({"step": milestone, "loss": loss, "attempt": self._attempt or 0})
            self._changed.notify_all()

    def _train(self) -> None:
        try:
            attempt = self._run()
            ended: dict[str, Any] = {"status": "done", "reason": ""}
        except KeyboardInterrupt:
            ended = {"status": "stopped", "reason": "stopped on request"}
        except MantaError as error:
            ended = {"status": "failed", "reason": str(error), "is_final": is_final(error)}
        except BaseException as error:  # the sweep continues with the other trials, and shows the reason
            ended = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        with self._changed:
            if ended["status"] == "done":
                self._attempt, self._seen.step = attempt, self.assignment.until
                self._report_due()
            self._seen.ended = ended | {"reason": struck(ended["reason"])[:2000]}
            self._changed.notify_all()

    def _run(self) -> int:
        """Trains up to the leg's end; returns the attempt that saved it."""
        sweep, assignment = self._context.sweep, self.assignment
        config = sweep.config_of(assignment.point, assignment.run, assignment.seed)
        data = self._context.data.with_weights(config.data)
        if assignment.max_workers:
            scaling = config.scaling.model_copy(update={"max_workers": assignment.max_workers})
            config = config.model_copy(update={"scaling": scaling})
        # Free slots belong to other trials, so evaluations do not run in the background.
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"background": False})})
        vocabulary = vocabulary_of(config, data.tokenizer, data.job.input_tokenizer)
        self._parameters = parameters_of(config, vocabulary)
        root, store = stores(config)
        patience = Patience(config.store.patience, telling(self.line, "preparing"))
        saved_step, record = patience.call(lambda: self._stored(root, store))
        if record is not None and saved_step:
            refuse_changed_config(record, config)
        if record is not None and self._has_reached(record, saved_step):
            return self._saved_by(store, record.last.number)
        fence = patience.call(
            lambda: Fence.claim(
                store,
                config.run,
                result_fields(config),
                keep_pins=bool(saved_step) and record is not None,
                started_at=assignment.started_at,
                takeover=True,  # the sweep's own fence already excludes other attempts
            )
        )
        try:
            run = Run(config, root, store, fence.record, self._context.group)
            init = patience.call(lambda: initial_weights_of(run, data.tokenizer, self.line))
            patience.call(lambda: fence.update(**data.digests, init=init))
            run = replace(run, record=fence.record)
            self._polled_at = time.monotonic()
            self._setup_s = time.time() - assignment.started_at
            with Heartbeat(fence, config.store.patience, telling(self.line, "writing the run's record")) as heartbeat:
                run_attempt(
                    run,
                    heartbeat,
                    data,
                    self,  # type: ignore[arg-type]
                    self._requests,
                    max(POLL_S, assignment.running / POLLS_PER_S),
                    until=assignment.until,
                    shared=SharedProcesses(self._context.hosts, self._workers),
                )
        except BaseException as error:
            close_attempt(fence, error)
            raise
        return self._saved_by(store, fence.record.last.number)

    def _saved_by(self, store: Store, last: int) -> int:
        """The attempt whose checkpoint is at the leg's end: another trial may need it. `last` is the run's last one."""
        if self._context.sweep.spec.scheduler.name != "pbt":
            return last
        patience = Patience(self._context.sweep.base.store.patience, telling(self.line, "listing checkpoints"))
        names = patience.call(lambda: list_checkpoints(store, load_record(store)))
        return max((name.attempt for name in names if name.step == self.assignment.until), default=last)

    def _stored(self, root: Store, store: Store) -> tuple[int, RunRecord | None]:
        """Step of the newest checkpoint (0: none), and the record; copies a donor's state, takes over what is known."""
        if (donor := self.assignment.donor) is not None:
            fork(root.child(f"runs/{donor.run}"), CheckpointName(donor.step, donor.attempt), store)
            self._is_forked = True
        record = load_record(store) if store.head(RECORD) is not None else None
        if record is not None:
            refuse_lost_checkpoints(store, record)
            self._seen.evaluations.update(
                {
                    each["step"]: each["val_loss"]
                    for attempt in record.attempts
                    for each in attempt.evaluations
                    if "val_loss" in each
                }
            )
        if not list_checkpoints(store):
            return 0, record
        state = read_state(store, record)
        self._seen.losses.update(zip(*(state.rows[name].to_pylist() for name in ("step", "loss")), strict=True))
        return int(state.saved["step"]), record

    def _has_reached(self, record: RunRecord, saved_step: int) -> bool:
        """Whether the run had come to the leg's end before, unknown to the sweep's records."""
        until, metric = self.assignment.until, self._context.sweep.spec.metric
        if record.last.status == "finished" and "val_loss" in record.result:
            self._seen.evaluations[self._context.sweep.steps] = record.result["val_loss"]
        return saved_step >= until and (metric != "val_loss" or until in self._seen.evaluations)


def is_final(error: MantaError) -> bool:
    """Whether a trial that failed with this error would fail with it again."""
    passes = (ClusterTooSmallError, DiskFullError, RunInUseError, StoreAccessError)
    return isinstance(error, (InputError, BadLossError)) and not isinstance(error, passes)
