"""metrics.jsonl has the rows of the ledger, is written rarely in a long run, and never becomes older."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import ConflictError
from data.stores.local import LocalStore
from orchestrator.run.ledger import MERGED, StepLedger
from orchestrator.run.metrics_file import METRICS, SHORT_STEPS, TRIES, MetricsFile, metrics_lines, newest_step
from tests.orchestrator.run.builders import step_row


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def write(ledger: StepLedger, first: int, last: int) -> None:
    ledger.write([step_row(step) for step in range(first, last + 1)])


@pytest.mark.parametrize(
    ("step", "before", "is_last", "newest"),
    [
        (1, 0, False, 1),
        (SHORT_STEPS, SHORT_STEPS - 1, False, SHORT_STEPS),
        (SHORT_STEPS + 1, SHORT_STEPS, False, SHORT_STEPS),
        (100_000, 95_001, False, 95_001),
        (100_000, 95_000, False, 100_000),
        (100_000, 99_999, True, 100_000),
        (100_000, 100_000, True, 100_000),  # saved already, by an agent that may have died before it wrote the file
    ],
)
def test_when_it_is_written(step: int, before: int, is_last: bool, newest: int) -> None:
    assert newest_step(step, before, is_last=is_last) == newest


def test_it_has_a_line_for_every_row(store: LocalStore) -> None:
    """Also of segments that have been merged meanwhile, and where no loss was computed."""
    ledger, file = StepLedger(store, 1, 0, []), MetricsFile(store)
    for step in range(1, MERGED + 3):
        ledger.write([step_row(step, loss=None if step == 2 else 1 / step)])
        ledger.merge()
        file.write(ledger, lambda: True)
        assert [json.loads(line)["step"] for line in store.get(METRICS).splitlines()] == list(range(1, step + 1))
    first, second, *_ = store.get(METRICS).splitlines()
    assert json.loads(first) == step_row(1).metrics() and json.loads(second)["loss"] is None
    lines = b"".join(metrics_lines(store, ledger.segments))
    assert store.get(METRICS) == lines
    assert b"".join(metrics_lines(store, ledger.segments, after=5)) == b"".join(lines.splitlines(keepends=True)[5:])


def test_rows_of_a_state_that_was_given_up_are_not_in_it(store: LocalStore) -> None:
    """The checkpoint of step 6 was damaged, and a group has gone on from step 4 by another ledger."""
    file, first = MetricsFile(store), StepLedger(store, 1, 0, [])
    write(first, 1, 4)
    at_four = first.segments
    write(first, 5, 6)
    file.write(first, lambda: True)
    second = StepLedger(store, 1, 4, at_four)
    second.write([step_row(5, world_size=7)])
    file.write(second, lambda: True)
    assert [json.loads(line)["world_size"] for line in store.get(METRICS).splitlines()] == [1, 1, 1, 1, 7]


@pytest.mark.parametrize("others", [1, 2, TRIES])
def test_what_another_process_writes_at_the_same_time_is_not_replaced(others: int, store: LocalStore) -> None:
    """It is asked which checkpoint is the newest after every try that was refused."""
    ledger, written = StepLedger(store, 1, 0, []), list[bytes]()
    write(ledger, 1, 4)

    def another_writes() -> bool:
        if len(written) == others:
            return False
        written.append(b"%d" % len(written))
        store.put(METRICS, written[-1])
        return True

    if others == TRIES:
        with pytest.raises(ConflictError):
            MetricsFile(store).write(ledger, another_writes)
    else:
        MetricsFile(store).write(ledger, another_writes)
    assert store.get(METRICS) == written[-1]


def test_it_is_not_written_for_a_checkpoint_that_is_not_the_newest(store: LocalStore) -> None:
    ledger = StepLedger(store, 1, 0, [])
    write(ledger, 1, 4)
    MetricsFile(store).write(ledger, lambda: False)
    assert store.head(METRICS) is None
