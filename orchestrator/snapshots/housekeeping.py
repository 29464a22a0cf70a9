"""What a snapshot agent does in the run's folder for a save, beside writing the checkpoint; it cannot fail the save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pyarrow import ArrowException

from data.errors import MantaError
from orchestrator.observe.event_files import TrainingEvents
from orchestrator.run.checkpoint import CheckpointName, ledgers_of, list_checkpoints
from orchestrator.run.job import TrainJob
from orchestrator.run.ledger import StepLedger, sweep_segments
from orchestrator.run.metrics_file import MetricsFile
from orchestrator.run.record import load_record


class Housekeeping:
    """Merges the ledger's segments, deletes old ones, and writes files for people. What fails is done by a later save.

    Args:
        job: the attempt's; its monitor is told of failures.
    """

    def __init__(self, job: TrainJob) -> None:
        self._job, self._store = job, job.store
        self._metrics, self._events = MetricsFile(job.store), TrainingEvents(job.store)

    def before_state(self, step: int, ledger: StepLedger) -> None:
        """Merges segments of the ledger, for the state of `step`, which lists them."""
        self._do(step, "segments of the ledger are not yet merged", ledger.merge)

    def after_save(
        self,
        name: CheckpointName,
        state: Mapping[str, Any],
        ledger: StepLedger,
        continued: Sequence[str],
        kept: Sequence[CheckpointName],
    ) -> None:
        """Brings the run's folder up to the checkpoint `name`.

        Args:
            state: its state.json.
            continued: ledger of the checkpoint before it.
            kept: all checkpoints that are kept.
        """
        store = self._store

        def is_newest() -> bool:
            return list_checkpoints(store, load_record(store))[-1:] == [name]

        def lists() -> Iterator[Sequence[str]]:
            yield from (continued, state["ledger"])
            yield from ledgers_of(store, kept)

        if state.get("metrics") == name.step:
            self._do(name.step, "not yet in metrics.jsonl", lambda: self._metrics.write(ledger, is_newest))
        self._do(name.step, "old segments of the ledger are not yet deleted", lambda: sweep_segments(store, lists()))
        if self._job.config.observe.tensorboard:
            self._do(name.step, "not yet in TensorBoard's files", lambda: self._events.follow(ledger.segments))

    def _do(self, step: int, failure: str, action: Callable[[], object]) -> None:
        """Does what may fail; a later save does it again."""
        try:
            action()
        except (MantaError, OSError, ArrowException) as error:
            reason = " ".join(str(error).split())[-300:]
            self._job.monitor.log.remote(f"step {step}: {failure}: {reason}")
