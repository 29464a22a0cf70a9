"""The evaluations of an attempt as the monitor keeps them: scores so far, and the one that runs in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from orchestrator.run.job import TrainJob
from orchestrator.run.record import EVALUATIONS


class Evaluation(Protocol):
    """An evaluation in a process of its own."""

    def scores(self) -> dict[str, float] | None:
        """Its scores; None while it runs. Raises the error that it failed with."""

    def cancel(self) -> None:
        """Ends it, whatever it does; its resources are free a moment later. Does not wait."""


StartEvaluation = Callable[[TrainJob, Any], Evaluation]
"""Starts an evaluation in the background, given the job and what `SnapshotAgent.weights` returns."""


class Evaluations:
    """Collects scores, and runs at most one evaluation in the background.

    Args:
        scores: list that scores are added to; every second one is dropped where it exceeds `EVALUATIONS`.
        log: receives lines for the console.
        start: starts an evaluation in the background; None: the workers always evaluate themselves.
    """

    def __init__(self, scores: list[dict[str, Any]], log: Callable[[str], None], start: StartEvaluation | None) -> None:
        self._scores, self._log, self._start = scores, log, start
        self._running: tuple[int, Evaluation, bool] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether background evaluation is possible in this run, and none is running, as of the last poll."""
        return self._start is not None and self._running is None

    @property
    def running_step(self) -> int | None:
        """Step of the evaluation that runs in the background; None if none does."""
        return None if self._running is None else self._running[0]

    def add(self, step: int, scores: Mapping[str, Any], *, averaged: bool) -> None:
        """Adds the scores of `step` and logs them; does nothing where no data is held out.

        Args:
            averaged: whether the weights were the run's moving average.
        """
        if not scores:
            return
        self._scores.append({"step": step, "at": time.time(), **scores})
        if len(self._scores) > EVALUATIONS:
            del self._scores[1:-1:2]
        loss, bits = scores["val_loss"], scores["val_bits_per_byte"]
        weights = " (averaged weights)" if averaged else ""
        bleu = f", BLEU {scores['val_bleu']:.2f}, chrF {scores['val_chrf']:.2f}" if "val_bleu" in scores else ""
        self._log(f"step {step}: held-out loss {loss:.4f}, {bits:.4f} bits per byte{bleu}{weights}")

    def start(self, job: TrainJob, step: int, weights: Any, *, averaged: bool) -> bool:
        """Starts evaluating the weights after `step` in the background; returns False if another is running."""
        assert self._start is not None, "the loop requests this only where LoopRequests.background offers it"
        if self.poll():
            self._log(f"step {step}: not evaluated, because the previous background evaluation is still running")
            return False
        self._running = step, self._start(job, weights), averaged
        return True

    def poll(self) -> bool:
        """Adds the scores of a background evaluation that has ended; returns whether one is still running."""
        if self._running is None:
            return False
        step, evaluation, averaged = self._running
        try:
            scores = evaluation.scores()
        except Exception as error:  # its node may have been lost; training must not fail with it
            self._log(f"step {step}: the background evaluation failed: {' '.join(str(error).split())[-200:]}")
            self._running = None
            return False
        if scores is None:
            return True
        self._running = None
        self.add(step, scores, averaged=averaged)
        return False

    def cancel(self) -> None:
        """Ends the background evaluation."""
        if self._running is not None:
            step, evaluation, _ = self._running
            self._log(f"step {step}: background evaluation cancelled, the workers need its slot")
            evaluation.cancel()
            self._running = None
