"""What a run waits for, by what it has: against Ray's own rule that a bundles comes whole and a single place by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.nodes.requests import TOKENIZING, NodeRequests

WORKER = {"CPU": 1.0, "GPU": 1.0}


class Waits:
    """In place of what waits in Ray."""

    def __init__(self) -> None:
        self.groups: list[Any] = []
        self.singles = 0

    def want(self, wanted: Any) -> None:
        if isinstance(wanted, int):
            self.singles = max(0, wanted)
        else:
            self.groups = list(wanted)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def wait_of(waits: Waits, min_workers: int = 2, max_workers: int = 4) -> NodeRequests:
    wait = NodeRequests("test", WORKER, min_workers, max_workers)
    wait._group_demand = wait._task_demand = waits  # type: ignore[assignment]
    return wait


def test_from_no_nodes_the_fewest_wait_together_with_who_tokenizes_and_the_rest_one_by_one(waits: Waits) -> None:
    wait_of(waits).for_start(places=0, held=0, reserved_slots=1)
    assert waits.groups == [(WORKER, WORKER, TOKENIZING)] and waits.singles == 2


def test_a_place_that_is_there_is_one_of_the_gang_and_keeps_singles_from_waiting(waits: Waits) -> None:
    wait_of(waits).for_start(places=1, held=0, reserved_slots=0)
    assert waits.groups == [(WORKER, WORKER)] and waits.singles == 0


def test_living_workers_have_their_places_already(waits: Waits) -> None:
    """A bundles for their places too would be more than there may be."""
    wait_of(waits, min_workers=3, max_workers=3).for_start(places=2, held=2, reserved_slots=0)
    assert waits.groups == [(WORKER,)]
    wait_of(waits, min_workers=2, max_workers=2).for_start(places=2, held=2, reserved_slots=1)
    assert waits.groups == [(TOKENIZING,)]


def test_with_room_enough_nothing_is_waited_for(waits: Waits) -> None:
    wait_of(waits).for_start(places=3, held=0, reserved_slots=1)
    assert waits.groups == [] and waits.singles == 0
    wait_of(waits).for_running(wanted=2, places=2, held=2, reserved_slots=1)
    assert waits.groups == [] and waits.singles == 0


def test_growing_waits_for_places_one_by_one(waits: Waits) -> None:
    wait_of(waits).for_running(wanted=4, places=2, held=2, reserved_slots=0)
    assert waits.groups == [] and waits.singles == 2


def test_a_free_place_that_is_of_no_use_alone_waits_for_another(waits: Waits) -> None:
    wait_of(waits).for_running(wanted=4, places=3, held=2, reserved_slots=0)
    assert waits.groups == [(WORKER, WORKER)] and waits.singles == 0


def test_a_place_kept_free_is_used_once_there_is_another_to_tokenize_in(waits: Waits) -> None:
    wait_of(waits).for_running(wanted=3, places=3, held=2, reserved_slots=1)
    assert waits.groups == [(WORKER, TOKENIZING)] and waits.singles == 0
    wait_of(waits).for_running(wanted=3, places=4, held=2, reserved_slots=1)
    assert waits.groups == [] and waits.singles == 0, "it only waits for the capacity to settle"
    wait_of(waits).for_running(wanted=4, places=2, held=2, reserved_slots=1)
    assert waits.groups == [(TOKENIZING,)] and waits.singles == 2


def test_places_on_nodes_about_to_go_are_waited_for_elsewhere(waits: Waits) -> None:
    wait_of(waits).for_running(wanted=2, places=1, held=1, reserved_slots=0)
    assert waits.groups == [] and waits.singles == 1
    wait_of(waits).for_running(wanted=3, places=3, held=2, reserved_slots=1)
    assert waits.groups == [(WORKER, TOKENIZING)], "the one that is free is for no worker"


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 8), st.integers(0, 4), st.integers(0, 1))
def test_whatever_is_missing_is_waited_for_by_what_does_not_fit_into_what_is_free(
    min_workers: int, more: int, places: int, held: int, reserved_slots: int
) -> None:
    """Else it would be over at once, and bring nobody."""
    waits, held = Waits(), min(held, places)
    wait_of(waits, min_workers, min_workers + more).for_start(places, held, reserved_slots)
    if places >= min_workers + reserved_slots:
        assert waits.groups == [] and waits.singles == 0
        return
    [bundles] = waits.groups
    workers = sum(place == WORKER for place in bundles)
    assert workers == max(0, min_workers - held) and len(bundles) - workers == reserved_slots
    assert len(bundles) > places - held


@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 6), st.integers(0, 1))
def test_growing_brings_no_more_than_it_needs_and_one_place_at_least(
    wanted: int, places: int, held: int, reserved_slots: int
) -> None:
    waits, held = Waits(), min(held, places)
    wait_of(waits).for_running(wanted, places, held, reserved_slots)
    free, missing = places - held, max(0, wanted - held)
    need = missing + (reserved_slots if missing else 0) - free
    waiting = sum(map(len, waits.groups)) + waits.singles
    if need <= 0:
        assert waiting == 0
    else:
        assert free < waiting <= free + need
        assert waits.singles == 0 or free == 0
