"""Requests for nodes, checked against Ray's rule that a placement group is placed as a whole and a task by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.nodes.requests import TOKENIZING, NodeRequests

WORKER = {"CPU": 1.0, "GPU": 1.0}


class FakeDemand:
    """Stand-in for the pending placement groups and tasks in Ray."""

    def __init__(self) -> None:
        self.groups: list[Any] = []
        self.singles = 0

    def request(self, wanted: Any) -> None:
        if isinstance(wanted, int):
            self.singles = max(0, wanted)
        else:
            self.groups = list(wanted)


@pytest.fixture
def demand() -> FakeDemand:
    return FakeDemand()


def requests_of(demand: FakeDemand, min_workers: int = 2, max_workers: int = 4) -> NodeRequests:
    requests = NodeRequests("test", WORKER, min_workers, max_workers)
    requests._group_demand = requests._task_demand = demand  # type: ignore[assignment]
    return requests


def test_without_nodes_min_workers_and_tokenizing_are_requested_together_and_others_singly(demand: FakeDemand) -> None:
    requests_of(demand).for_start(slots=0, held=0, reserved_slots=1)
    assert demand.groups == [(WORKER, WORKER, TOKENIZING)] and demand.singles == 2


def test_a_free_slot_is_part_of_the_group_and_prevents_single_requests(demand: FakeDemand) -> None:
    requests_of(demand).for_start(slots=1, held=0, reserved_slots=0)
    assert demand.groups == [(WORKER, WORKER)] and demand.singles == 0


def test_slots_of_live_workers_are_not_requested(demand: FakeDemand) -> None:
    """Bundles for their slots, too, would exceed the limits of the cluster."""
    requests_of(demand, min_workers=3, max_workers=3).for_start(slots=2, held=2, reserved_slots=0)
    assert demand.groups == [(WORKER,)]
    requests_of(demand, min_workers=2, max_workers=2).for_start(slots=2, held=2, reserved_slots=1)
    assert demand.groups == [(TOKENIZING,)]


def test_with_enough_slots_nothing_is_requested(demand: FakeDemand) -> None:
    requests_of(demand).for_start(slots=3, held=0, reserved_slots=1)
    assert demand.groups == [] and demand.singles == 0
    requests_of(demand).for_running(wanted=2, slots=2, held=2, reserved_slots=1)
    assert demand.groups == [] and demand.singles == 0


def test_growing_requests_single_slots(demand: FakeDemand) -> None:
    requests_of(demand).for_running(wanted=4, slots=2, held=2, reserved_slots=0)
    assert demand.groups == [] and demand.singles == 2


def test_a_free_slot_that_is_of_no_use_alone_is_requested_with_another(demand: FakeDemand) -> None:
    requests_of(demand).for_running(wanted=4, slots=3, held=2, reserved_slots=0)
    assert demand.groups == [(WORKER, WORKER)] and demand.singles == 0


def test_a_reserved_slot_is_requested_together_with_a_missing_one(demand: FakeDemand) -> None:
    requests_of(demand).for_running(wanted=3, slots=3, held=2, reserved_slots=1)
    assert demand.groups == [(WORKER, TOKENIZING)] and demand.singles == 0
    requests_of(demand).for_running(wanted=3, slots=4, held=2, reserved_slots=1)
    assert demand.groups == [] and demand.singles == 0, "the policy only waits for the capacity to settle"
    requests_of(demand).for_running(wanted=4, slots=2, held=2, reserved_slots=1)
    assert demand.groups == [(TOKENIZING,)] and demand.singles == 2


def test_slots_on_draining_nodes_are_requested_elsewhere(demand: FakeDemand) -> None:
    requests_of(demand).for_running(wanted=2, slots=1, held=1, reserved_slots=0)
    assert demand.groups == [] and demand.singles == 1
    requests_of(demand).for_running(wanted=3, slots=3, held=2, reserved_slots=1)
    assert demand.groups == [(WORKER, TOKENIZING)], "the free slot is reserved"


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 8), st.integers(0, 4), st.integers(0, 1))
def test_a_request_for_a_start_never_fits_into_the_free_slots(
    min_workers: int, more: int, slots: int, held: int, reserved_slots: int
) -> None:
    """Otherwise the request would be met at once, and add no node."""
    demand, held = FakeDemand(), min(held, slots)
    requests_of(demand, min_workers, min_workers + more).for_start(slots, held, reserved_slots)
    if slots >= min_workers + reserved_slots:
        assert demand.groups == [] and demand.singles == 0
        return
    [bundles] = demand.groups
    workers = sum(bundle == WORKER for bundle in bundles)
    assert workers == max(0, min_workers - held) and len(bundles) - workers == reserved_slots
    assert len(bundles) > slots - held


@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 6), st.integers(0, 1))
def test_growing_requests_at_least_one_slot_and_no_more_than_it_needs(
    wanted: int, slots: int, held: int, reserved_slots: int
) -> None:
    demand, held = FakeDemand(), min(held, slots)
    requests_of(demand).for_running(wanted, slots, held, reserved_slots)
    free, missing = slots - held, max(0, wanted - held)
    need = missing + (reserved_slots if missing else 0) - free
    waiting = sum(map(len, demand.groups)) + demand.singles
    if need <= 0:
        assert waiting == 0
    else:
        assert free < waiting <= free + need
        assert demand.singles == 0 or free == 0
