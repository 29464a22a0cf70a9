"""`metrics.jsonl`: the rows of the ledger without sample ids, one line each, for people and plots.

Nothing reads it but people. It is complete after every save of a short run, and at the end of every run; in a long run,
it is written again once it lacks a twentieth of the steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from data.errors import ConflictError
from data.stores.store import Store
from orchestrator.run.ledger import METRICS_SCHEMA, NO_DIGESTS, Segment, StepLedger, read_segments

METRICS = "metrics.jsonl"

SHORT_STEPS = 10_000
"""Steps up to which it is written after every save."""

NEW_SHARE = 0.05
"""Share of new steps from which it is written again."""

TRIES = 3
"""Tries of a write, each of which may collide with one of another process."""


def newest_step(step: int, before: int, *, is_last: bool) -> int:
    """The newest step that it has after a save of `step`; where that is `step`, the save writes it.

    Args:
        before: the newest step that it had before.
        is_last: whether the run ends with this step.
    """
    return step if is_last or step <= SHORT_STEPS or step - before >= NEW_SHARE * step else before


def metrics_lines(
    store: Store, segments: Sequence[str], after: int = 0, digests: Mapping[str, str] = NO_DIGESTS
) -> Iterator[bytes]:
    """The lines of the steps after `after`, each with its line break; see `read_segments`."""
    wanted = [name for name in segments if Segment.named(name).last > after]
    for table in read_segments(store, wanted, METRICS_SCHEMA, digests):
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                if row["step"] > after:
                    yield json.dumps(row).encode() + b"\n"


class MetricsFile:
    """Writes the file; owned by the process that writes checkpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledger: StepLedger | None = None
        self._lines, self._step = b"", 0  # those of a short run, so that a save reads no segment but its own

    def write(self, ledger: StepLedger, is_newest: Callable[[], bool]) -> None:
        """Writes all rows of the ledger, unless another process has saved a newer checkpoint.

        A write that was slow in reaching the store is refused there if another one has come before it.

        Args:
            is_newest: whether the ledger is that of the newest checkpoint.

        Raises:
            ConflictError: others were faster, each time.
            MantaError: see `data.stores.store`.
        """
        if ledger is not self._ledger:
            self._ledger, self._lines, self._step = ledger, b"", 0
        content = b"".join([self._lines, *metrics_lines(self._store, ledger.segments, self._step, ledger.digests)])
        if ledger.step <= SHORT_STEPS:
            self._lines, self._step = content, ledger.step
        for tries_left in reversed(range(TRIES)):
            found = self._store.head(METRICS)
            if not is_newest():
                return
            try:
                if found is None:
                    self._store.put_if_absent(METRICS, content)
                else:
                    self._store.put_if_match(METRICS, content, found.etag)
                return
            except ConflictError:
                if not tries_left:
                    raise
