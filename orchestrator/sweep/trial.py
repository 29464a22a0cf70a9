"""A trial: one whole run, trained from an actor of Ray Tune on the head node, which nobody reclaims.

A class of Tune's and not a function: Tune calls `stop` and waits for it, so that a trial that is stopped ends its run
as Ctrl-C would, workers, actors and the nodes' memory included. A function would be left to its thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray.tune

from data.errors import MantaError
from data.prepare import PreparedData
from orchestrator.config.result_fields import result_fields
from orchestrator.driver.prepare import initial_weights_of
from orchestrator.driver.train import close_attempt
from orchestrator.run.checkpoint import CheckpointName, list_checkpoints
from orchestrator.run.fence import Fence
from orchestrator.run.ledger import metrics_lines
from orchestrator.run.progress import Progress
from orchestrator.run.record import load_record
from orchestrator.run.run import Run, stores
from orchestrator.sweep.fork import fork
from orchestrator.sweep.milestones import due, mean_loss, milestones, rungs
from orchestrator.sweep.records import Donor
from orchestrator.sweep.spec import Sweep

POLL_S = 0.1
"""Seconds between two looks at a trial's loop: what a trial that is to be stopped trains beyond its rung."""

RESULT_S = 1.0
"""Seconds from one result for Tune to the next, where there is nothing to report."""

STOP_S = 45.0
"""Seconds a stopped trial may take to save and to end; its process is ended then in any case."""


@dataclass(frozen=True)
class TrialContext:
    """The same for all trials.

    Attributes:
        environment: variables of the sweep's own process that trials need.
    """

    sweep: Sweep
    data: PreparedData
    environment: dict[str, str]


@dataclass(frozen=True)
class Assignment:
    """What a trial's actor is told.

    Attributes:
        max_workers: max_workers workers it may use, by the sweep's shares; 0: as the recipe says.
        reported: newest step reported before.
    """

    id: str
    run: str
    point: dict[str, Any]
    started_at: float
    max_workers: int = 0
    reported: int = 0
    donor: Donor | None = None


@dataclass
class _Seen:
    """The loop as last seen; shared by the trial's thread and Tune's."""

    step: int = 0
    workers: int = 0
    worker_s: float = 0.0
    first_step_at: float | None = None
    losses: dict[int, float | None] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] | None = None


class TrialDriver(ray.tune.Trainable):
    """The actor. `step` waits for the next report, at max_workers RESULT_S."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        """Take the assignment; training begins with the first `step`."""
        assert context is not None
        os.environ.update(context.environment)
        self._trial = Trial(context, config["assignment"])
        self._step = config["assignment"].reported

    def step(self) -> dict[str, Any]:
        """The next report, with `step` and `loss`; without them where there is none."""
        result = self._trial.next_result(RESULT_S)
        self._step = result.get("step", self._step)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """What Tune keeps of a trial: which checkpoint in object storage is meant; its tensors never come here."""
        assignment = self._trial.assignment
        return {"run": assignment.run, "step": self._step}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Take note of what has been reported where a trial goes on after a pause.

        Nothing else is to be done: a run goes on from its own newest checkpoint, and a donor's is in the assignment.
        """
        if checkpoint is not None and checkpoint["run"] == self._trial.assignment.run:
            self._trial.has_reported(checkpoint["step"])

    def cleanup(self) -> None:
        """Have the run saved and ended, and everything given back."""
        self._trial.stop()


class Trial:
    """The run of an assignment, in a thread of its own."""

    def __init__(self, context: TrialContext, assignment: Assignment) -> None:
        from orchestrator.driver.stop_requests import StopRequests

        self.assignment, self._context = assignment, context
        self._requests = StopRequests()
        self._changed = threading.Condition()
        self._seen = _Seen()
        self._polled_at = time.monotonic()
        self._setup_s: float | None = None
        sweep = context.sweep
        self._milestones = [mark for mark in milestones(sweep) if mark > assignment.reported]
        # Another trial may go on from this one's state at these steps: they are reported once they are in storage.
        self._saved_milestones = set(rungs(sweep)) if sweep.spec.scheduler.name == "pbt" else set()
        self._thread = threading.Thread(target=self._train, name="trial", daemon=True)

    def has_reported(self, step: int) -> None:
        """Nothing up to `step` is to be reported again."""
        self._milestones = [mark for mark in self._milestones if mark > step]

    def next_result(self, timeout_s: float) -> dict[str, Any]:
        """The next report or the run's end, or after `timeout_s` only how far it is."""
        if not self._thread.ident:
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._seen.reports or self._seen.ended, timeout_s)
            seen = self._seen
            told = {
                "at_step": seen.step,
                "workers": seen.workers,
                "worker_s": seen.worker_s,
                "setup_s": self._setup_s,
                "first_step_s": seen.first_step_at and seen.first_step_at - self.assignment.started_at,
            }
            if seen.reports:
                return told | seen.reports.pop(0)
            return told | seen.ended | {"done": True} if seen.ended is not None else told

    def stop(self) -> None:
        """Ask the run to save and end; returns when it has, or after STOP_S."""
        if self._thread.ident:
            self._requests.ask()
            self._thread.join(STOP_S)

    # What follows runs in the trial's thread. It is the run's console: it is told lines, and of the loop's progress.

    def line(self, text: str) -> None:
        """A line for whoever looks into the log of the trial's process; nobody watches a single trial."""
        print(f"[{time.time() - self.assignment.started_at:6.1f} s] {text}", flush=True)

    def close(self) -> None:
        """The run's output has ended."""

    def progress(self, progress: Progress, steps: int) -> None:
        """The loop as seen just now."""
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
        for mark in due(self._milestones, seen.step):
            if sweep.spec.metric == "val_loss":
                if mark not in seen.evaluations:
                    return
                loss: float | None = seen.evaluations[mark]
            else:
                loss = mean_loss(seen.losses, mark, sweep.spec.window)
            attempt = self._saved_by(mark) if mark in self._saved_milestones else 0
            if attempt is None:
                return
            self._milestones.remove(mark)
            seen.reports.append({"step": mark, "loss": loss, "attempt": attempt})
            self._changed.notify_all()

    def _saved_by(self, step: int) -> int | None:
        """The attempt that wrote the checkpoint of `step`; 0 where a later one has replaced it; None: none yet."""
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
        except BaseException as error:  # the sweep goes on, and tells of it
            ended = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        with self._changed:
            self._seen.ended = ended | {"reason": ended["reason"][:2000]}
            self._changed.notify_all()

    def _run(self) -> None:
        from orchestrator.driver.attempt import run_attempt

        sweep, data, assignment = self._context.sweep, self._context.data, self.assignment
        config = sweep.config_of(assignment.point, assignment.run)
        if assignment.max_workers:
            scaling = config.scaling.model_copy(update={"max_workers": assignment.max_workers})
            config = config.model_copy(update={"scaling": scaling})
        # A place that is free is another trial's.
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"background": False})})
        if self._saved_milestones:
            saving = {"every_steps": min(self._saved_milestones), "keep": max(config.checkpoint.keep, 4)}
            config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update=saving)})
        root, self._store = stores(config)
        if assignment.donor is not None:
            donor = assignment.donor
            fork(root.child(f"runs/{donor.run}"), CheckpointName(donor.step, donor.attempt), self._store)
        begun = bool(list_checkpoints(self._store))
        if begun:
            rows = [json.loads(line) for line in metrics_lines(self._store)]
            self._seen.losses.update({row["step"]: row["loss"] for row in rows})
            if self._has_finished():
                return
        fence = Fence.claim(
            self._store,
            config.run,
            result_fields(config),
            begun=begun and self._store.head("run.json") is not None,
            started_at=assignment.started_at,
            takeover=True,  # the sweep's own fence is above this one
        )
        try:
            run = Run(config, root, self._store, fence.record)
            init = initial_weights_of(run, data.tokenizer, self.line)
            fence.update(**data.digests, init=init)
            run = replace(run, record=fence.record)
            self._polled_at = time.monotonic()
            self._setup_s = time.time() - assignment.started_at
            run_attempt(run, fence, data, self, self._requests, POLL_S)  # type: ignore[arg-type]
        except BaseException as error:
            close_attempt(fence, error)
            raise

    def _has_finished(self) -> bool:
        """Whether the run has come to its end already, unknown to the sweep's records; its reports are made up for."""
        if self._store.head("run.json") is None:
            return False
        record = load_record(self._store)
        if record.last.status != "finished":
            return False
        with self._changed:
            self._seen.step = self._context.sweep.steps
            if "val_loss" in record.result:
                self._seen.evaluations[self._seen.step] = record.result["val_loss"]
            self._report_due()
        return True
