"""Outages: what of a store's failures the run's record and the console receive."""

from __future__ import annotations

from typing import Any

import pytest

from data.stores.patience import Outage
from orchestrator.monitor.outages import Outages
from orchestrator.run.record import OUTAGES

BUSY = Outage(10.0, "It is busy.", 3610.0)


@pytest.fixture
def kept() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def outages(kept: list[dict[str, Any]], lines: list[str]) -> Outages:
    return Outages(kept, lines.append)


def test_an_outage_is_one_entry_from_its_first_failure_to_its_end(
    outages: Outages, kept: list[dict[str, Any]], lines: list[str]
) -> None:
    outages.report("saving", BUSY)
    outages.report("saving", Outage(10.0, "It does not answer.", 3610.0))
    assert kept == [{"doing": "saving", "since": 10.0, "until": None, "problem": "It does not answer."}]
    assert outages.any and len(lines) == 1
    outages.report("saving", None)
    assert kept[0]["until"] > 10.0 and not outages.any
    assert lines[1].startswith("saving: the store answers again")


def test_what_needs_the_store_fails_and_recovers_by_itself(outages: Outages, kept: list[dict[str, Any]]) -> None:
    for doing in ("saving", "reading"):
        outages.report(doing, BUSY)
    outages.report("saving", None)
    assert outages.any and [each["until"] is None for each in kept] == [False, True]
    outages.report("saving", BUSY)
    assert [each["doing"] for each in kept] == ["saving", "reading", "saving"]


def test_a_success_without_an_outage_is_no_news(outages: Outages, kept: list[dict[str, Any]], lines: list[str]) -> None:
    outages.report("saving", None)
    assert kept == lines == [] and not outages.any


def test_the_successor_of_a_process_that_died_goes_on_with_its_outage(
    outages: Outages, kept: list[dict[str, Any]]
) -> None:
    outages.report("saving", BUSY)
    outages.report("saving", Outage(500.0, "It is busy.", 4100.0))
    assert [each["since"] for each in kept] == [10.0]


def test_the_newest_are_kept(outages: Outages, kept: list[dict[str, Any]]) -> None:
    for number in range(OUTAGES + 5):
        outages.report("saving", Outage(float(number), "It is busy.", 1e9))
        outages.report("saving", None)
    assert [each["since"] for each in kept] == [float(number) for number in range(5, OUTAGES + 5)]
