"""Progress of rows that are made one per unit."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from data.errors import MantaError
from data.shards import unit_rows
from data.shards.unit_rows import with_progress


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_rows, "SILENCE_S", 0.01)


def test_a_unit_that_takes_long_is_told_of() -> None:
    told: list[str] = []

    def rows() -> Iterator[int]:
        yield 1
        while not any("1 of 2 units, none for" in line for line in told):
            threading.Event().wait(0.01)
        yield 2

    assert list(with_progress(rows(), 2, "tokens", told.append)) == [1, 2]
    assert told[-1] == "tokens: 2 of 2 units"
    assert "silence" not in {thread.name for thread in threading.enumerate()}


def test_what_ends_the_attempt_meanwhile_is_raised() -> None:
    failed = threading.Event()

    def log(line: str) -> None:
        failed.set()
        raise MantaError("another attempt has taken over")

    def rows() -> Iterator[int]:
        assert failed.wait(60)
        yield 1

    with pytest.raises(MantaError, match="taken over"):
        list(with_progress(rows(), 2, "tokens", log))
