"""What rank 0 keeps of a run while it trains: the ledger, the checkpoints, and word to the driver."""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import save_file
from torch import nn

from data.errors import TransientStoreError
from orchestrator.checkpoint import PROGRESS, CheckpointName, prune, write_checkpoint
from orchestrator.goodput import GoodputClock
from orchestrator.job import TrainJob
from orchestrator.ledger import LedgerCut, StepLedger, StepRow
from orchestrator.model_state import discard_snapshots, run_label, snapshot_state
from orchestrator.monitor import Wishes
from orchestrator.node_memory import SnapshotClock
from orchestrator.restore import Restored
from orchestrator.run_record import check_fence
from orchestrator.step_log import Orders

TELL_EVERY_S = 1.0
"""Seconds between two words to the driver, which looks no more often; a call a step would cost short steps 1 %."""

SAVE_TRIES = 3
"""Checkpoints in a row that may fail because the store does not answer, before the run ends."""


class Recorder:
    """Rank 0's books. Checkpoints are written by a thread, one at a time, while the loop goes on."""

    def __init__(
        self,
        job: TrainJob,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        restored: Restored,
        clock: GoodputClock,
    ) -> None:
        saved_step = int(restored.saved["step"])
        ledger = StepLedger(job.store, job.attempt, saved_step, restored.saved["ledger"], restored.saved["tokens"])
        for row in restored.rows:
            ledger.add(row)
        self._job, self._model, self._optimizer, self._ledger, self._clock = job, model, optimizer, ledger, clock
        self._reply: ray.ObjectRef[Wishes] | None = None
        self._wishes = Wishes()
        self._row: StepRow | None = None
        self._told_at = -math.inf
        self._saving: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failures = 0
        self._unwritten: list[LedgerCut] = []
        self._saved_at = time.monotonic()
        self._saved_step = saved_step
        self._snapshots = SnapshotClock()
        # The run's only live attempt is this one, so snapshots of the run that are still here are a dead one's.
        self._label = run_label(job.store.url_of(""))
        discard_snapshots(self._label)

    def begin(self, step: int, world_size: int) -> int:
        """Tell the driver that the group goes on from `step`; returns the newest step done by any group before."""
        clock_s = sum(self._clock.seconds().values())
        done: int = ray.get(self._job.monitor.begin_group.remote(step, world_size, clock_s))
        return max(done, self._job.done_before)

    def orders(self) -> Orders:
        """What all ranks are told with the step that is just being done."""
        stop, pause = self._heard()
        step_s = self._row.step_s if self._row is not None else 0.0
        # A pause is as good as its snapshot: one is taken, whatever it costs.
        return Orders(stop, self._snapshots.is_due(step_s) or pause, pause, self._saved_step)

    def snapshot_taken(self, cost_s: float) -> None:
        """All ranks stood still for `cost_s` seconds to keep their state in memory."""
        self._snapshots.taken(cost_s)

    def tell(self, **progress: Any) -> None:
        """Fields of `Progress` for the driver, beside the newest step; does not wait."""
        if self._row is not None:
            progress |= {"row": self._row.metrics(), "goodput": self._clock.seconds()}
        self._reply = self._job.monitor.report.remote(**progress)
        self._told_at = time.monotonic()

    def note(self, line: str) -> None:
        """A line for whoever watches."""
        self._job.monitor.note.remote(line)

    def step_done(self, row: StepRow) -> None:
        """Book a step, and save when it is time."""
        self._ledger.add(row)
        is_first, self._row = self._row is None, row
        if is_first or time.monotonic() - self._told_at >= TELL_EVERY_S:
            self.tell()
        if self._is_due(row.step):
            with self._clock.during("checkpoint"):
                self._start_saving(row.step)

    def _heard(self) -> Wishes:
        """What the driver has answered to the newest word it has answered; never waits."""
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            self._wishes = ray.get(self._reply)
            self._reply = None
        return self._wishes

    def save_and_wait(self, step: int) -> None:
        """Have a checkpoint of `step` in the store when this returns.

        Raises:
            FencedError, MantaError: see `orchestrator.run_record` and `data.store`.
        """
        for _ in range(SAVE_TRIES):
            self._finish_saving()
            if self._saved_step == step:
                return
            self._start_saving(step)
        self._finish_saving()
        if self._saved_step != step:
            raise TransientStoreError(
                f"The checkpoint of step {step} could not be written in {SAVE_TRIES} tries; the store does not answer."
            )

    def _is_due(self, step: int) -> bool:
        if self._saving is not None and self._saving.is_alive():
            return False  # the store is slower than the interval: skip, never queue
        self._finish_saving()
        checkpoint = self._job.config.checkpoint
        if checkpoint.every_steps is not None:
            return step % checkpoint.every_steps == 0
        return time.monotonic() - self._saved_at >= checkpoint.every_s

    def _start_saving(self, step: int) -> None:
        snapshot = snapshot_state(self._model, self._optimizer, self._label)
        self._unwritten.append(self._ledger.cut())
        state = {
            "step": step,
            "tokens": self._ledger.tokens,
            "samples": step * self._job.config.train.global_batch_size,
            "seed": self._job.config.seed,
            "ledger": self._unwritten[-1].segments,
            "saved_at": time.time(),
            **self._job.facts,
        }
        self._saved_at = time.monotonic()
        self._saving = threading.Thread(target=self._write, args=(step, state, snapshot), name="checkpoint")
        self._saving.start()

    def _finish_saving(self) -> None:
        """Wait for the thread, and raise what it could not get over."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if self._error is not None:
            raise self._error

    def _write(self, step: int, state: dict[str, Any], snapshot: Path) -> None:
        store, job = self._job.store, self._job
        began = time.monotonic()
        try:
            check_fence(store, job.attempt)  # before metrics.jsonl, which a newer attempt may have written since
            counts, state["skipped"] = ray.get([job.feeder.counts.remote(), job.feeder.skipped.remote()])
            save_file({"counts": torch.from_numpy(counts)}, snapshot / PROGRESS)
            while self._unwritten:
                self._unwritten[0].write(store)
                del self._unwritten[0]
            name = CheckpointName(step, job.attempt)
            size = write_checkpoint(store, name, state, snapshot, before_commit=lambda: check_fence(store, job.attempt))
            self._saved_step, self._failures = step, 0
            self.note(f"step {step}: checkpoint saved ({size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s)")
            prune(store, check_fence(store, job.attempt), job.config.checkpoint.keep)
        except TransientStoreError as error:
            self._failures += 1
            self.note(
                f"step {step}: checkpoint not saved, {error} Training goes on; try {self._failures} of {SAVE_TRIES}."
            )
            if self._failures >= SAVE_TRIES:
                self._error = error
        except BaseException as error:  # raised in the loop, at the next save
            self._error = error
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)
