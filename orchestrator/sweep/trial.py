"""A trial: a whole run, driven by an actor of Ray Tune on the head node, which is never a spot node.

The actor is a class of Tune and not a function. Tune calls `stop` and waits for it, so that a stopped trial ends its
run as Ctrl-C does and releases workers, actors and node memory. The thread of a function would not be stopped.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray.tune

from cluster.known_secrets import struck
from data.errors import MantaError
from data.prepared import PreparedData
from data.stores.patience import telling
from orchestrator.config.result_fields import result_fields
from orchestrator.driver.attempt import run_attempt
from orchestrator.driver.prepare import initial_weights_of
from orchestrator.driver.stop_requests import StopRequests
from orchestrator.driver.train import close_attempt
from orchestrator.printable import printable
from orchestrator.run.checkpoint import CheckpointName, list_checkpoints, refuse_lost_checkpoints
from orchestrator.run.fence import Fence
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.run.progress import Progress
from orchestrator.run.record import RECORD, RunRecord, load_record
from orchestrator.run.run import Run, stores
from orchestrator.run.stored import read_state
from orchestrator.sweep.fork import fork
from orchestrator.sweep.milestones import due, mean_loss, milestones, rungs
from orchestrator.sweep.records import Donor
from orchestrator.sweep.spec import Sweep

POLL_S = 0.1
"""Seconds between two polls of a trial's loop, which bounds how far a stopped trial trains beyond its rung."""

RESULT_S = 1.0
"""Seconds between two results for Tune while there is nothing to report."""

STOP_S = 45.0
"""Seconds that a stopped trial may take to save and end; after that its process is killed."""


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Attributes:
        environment: environment variables of the sweep's process that the trials' actors need.
    """

    sweep: Sweep
    data: PreparedData
    environment: dict[str, str]


@dataclass(frozen=True)
class Assignment:
    """What a trial's actor has to run.

    Attributes:
        max_workers: the trial's share of the worker slots; 0: the recipe's own scaling.max_workers.
        reported: newest step that was reported already.
        donor: checkpoint of another trial to start from.
    """

    id: str
    run: str
    point: dict[str, Any]
    started_at: float
    max_workers: int = 0
    reported: int = 0
    donor: Donor | None = None


@dataclass
class _LoopState:
    """The training loop at the last poll; shared by the trial's thread and Tune's thread."""

    step: int = 0
    workers: int = 0
    worker_s: float = 0.0
    first_step_at: float | None = None
    losses: dict[int, float | None] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] | None = None


class TrialDriver(ray.tune.Trainable):
    """The trial's actor. `step` waits for the next report, at most RESULT_S."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        """Takes the assignment; training starts with the first `step`."""
        assert context is not None
        os.environ.update(context.environment)
        self._trial = Trial(context, config["assignment"])
        self._step = config["assignment"].reported

    def step(self) -> dict[str, Any]:
        """Returns the next report, with `step` and `loss`, or only the progress where there is no report."""
        result = self._trial.next_result(RESULT_S)
        self._step = result.get("step", self._step)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Names the checkpoint in object storage, for Tune's own state; no tensors pass through Tune."""
        assignment = self._trial.assignment
        return {"run": assignment.run, "step": self._step}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Skips the steps that were reported before a pause.

        Nothing else is needed: a run continues from its own newest checkpoint, and a donor is in the assignment.
        """
        if checkpoint is not None and checkpoint["run"] == self._trial.assignment.run:
            self._trial.skip_reported(checkpoint["step"])

    def cleanup(self) -> None:
        """Saves and ends the run, and releases its resources."""
        self._trial.stop()


class Trial:
    """Runs an assignment in a thread of its own. It is also the run's console, through which it sees the progress."""

    def __init__(self, context: TrialContext, assignment: Assignment) -> None:
        self.assignment, self._context = assignment, context
        self._requests = StopRequests()
        self._changed = threading.Condition()
        self._seen = _LoopState()
        self._polled_at = time.monotonic()
        self._setup_s: float | None = None
        sweep = context.sweep
        self._milestones = [milestone for milestone in milestones(sweep) if milestone > assignment.reported]
        # Another trial may continue from this one's state at these steps: they are reported once they are in storage.
        self._saved_milestones = set(rungs(sweep)) if sweep.spec.scheduler.name == "pbt" else set()
        self._thread = threading.Thread(target=self._train, name="trial", daemon=True)

    def skip_reported(self, step: int) -> None:
        """Drops the milestones up to `step`, which were reported before."""
        self._milestones = [milestone for milestone in self._milestones if milestone > step]

    def next_result(self, timeout_s: float) -> dict[str, Any]:
        """The next report or the run's end; after `timeout_s` only the progress."""
        if not self._thread.ident:
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._seen.reports or self._seen.ended, timeout_s)
            seen = self._seen
            progress = {
                "at_step": seen.step,
                "workers": seen.workers,
                "worker_s": seen.worker_s,
                "setup_s": self._setup_s,
                "first_step_s": seen.first_step_at and seen.first_step_at - self.assignment.started_at,
            }
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
        sweep, seen = self._context.sweep, self._seen
        for milestone in due(self._milestones, seen.step):
            if sweep.spec.metric == "val_loss":
                if milestone not in seen.evaluations:
                    return
                loss: float | None = seen.evaluations[milestone]
            else:
                loss = mean_loss(seen.losses, milestone, sweep.spec.window)
            attempt = self._saved_by(milestone) if milestone in self._saved_milestones else 0
            if attempt is None:
                return
            self._milestones.remove(milestone)
            seen.reports.append({"step": milestone, "loss": loss, "attempt": attempt})
            self._changed.notify_all()

    def _saved_by(self, step: int) -> int | None:
        """The attempt that wrote the checkpoint of `step`; 0 if a later one replaced it, None if none is saved yet."""
        names = list_checkpoints(self._store, load_record(self._store))
        if not names or names[-1].step < step:
            return None
        return max((name.attempt for name in names if name.step == step), default=0)

    def _train(self) -> None:
        try:
            self._run()
            ended = {"status": "finished", "reason": ""}
        except KeyboardInterrupt:
            ended = {"status": "stopped", "reason": "stopped on request"}
        except MantaError as error:
            ended = {"status": "failed", "reason": str(error)}
        except BaseException as error:  # the sweep continues with the other trials, and shows the reason
            ended = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        with self._changed:
            self._seen.ended = ended | {"reason": struck(ended["reason"])[:2000]}
            self._changed.notify_all()

    def _run(self) -> None:
        sweep, data, assignment = self._context.sweep, self._context.data, self.assignment
        config = sweep.config_of(assignment.point, assignment.run)
        if assignment.max_workers:
            scaling = config.scaling.model_copy(update={"max_workers": assignment.max_workers})
            config = config.model_copy(update={"scaling": scaling})
        # Free slots belong to other trials, so evaluations do not run in the background.
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"background": False})})
        if self._saved_milestones:
            saving = {"every_steps": min(self._saved_milestones), "keep": max(config.checkpoint.keep, 4)}
            config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update=saving)})
        root, self._store = stores(config)
        if assignment.donor is not None:
            donor = assignment.donor
            fork(root.child(f"runs/{donor.run}"), CheckpointName(donor.step, donor.attempt), self._store)
        begun = bool(list_checkpoints(self._store))
        record = load_record(self._store) if self._store.head(RECORD) is not None else None
        if record is not None:
            refuse_lost_checkpoints(self._store, record)
        if begun:
            rows = read_state(self._store, record).rows
            self._seen.losses.update(zip(rows["step"].to_pylist(), rows["loss"].to_pylist(), strict=True))
            if record is not None and self._has_finished(record):
                return
        fence = Fence.claim(
            self._store,
            config.run,
            result_fields(config),
            keep_pins=begun and record is not None,
            started_at=assignment.started_at,
            takeover=True,  # the sweep's own fence already excludes other attempts
        )
        try:
            run = Run(config, root, self._store, fence.record)
            init = initial_weights_of(run, data.tokenizer, self.line)
            fence.update(**data.digests, init=init)
            run = replace(run, record=fence.record)
            self._polled_at = time.monotonic()
            self._setup_s = time.time() - assignment.started_at
            with Heartbeat(fence, config.store.patience, telling(self.line, "writing the run's record")) as heartbeat:
                run_attempt(run, heartbeat, data, self, self._requests, POLL_S)  # type: ignore[arg-type]
        except BaseException as error:
            close_attempt(fence, error)
            raise

    def _has_finished(self, record: RunRecord) -> bool:
        """Whether the run had finished before, unknown to the sweep's records; if so, adds the missing reports."""
        if record.last.status != "finished":
            return False
        with self._changed:
            self._seen.step = self._context.sweep.steps
            if "val_loss" in record.result:
                self._seen.evaluations[self._seen.step] = record.result["val_loss"]
            self._report_due()
        return True
