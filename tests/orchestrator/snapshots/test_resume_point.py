"""Which node's snapshot a worker group resumes from."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.snapshots.resume_point import copy_rounds, newest_holder


@pytest.mark.parametrize(
    ("held", "saved", "holder"),
    [
        ([(-1, -1), (-1, -1)], 0, None),
        ([(7, 1), (9, 1), (9, 1)], 0, 1),
        ([(7, 6), (9, 8)], 5, 0),  # rows 6 and 7 are lost: the checkpoint of step 7 was damaged
        ([(9, 8)], 9, 0),  # as new as the checkpoint, and no download
        ([(9, 8)], 10, None),
        ([(-1, -1)], 0, None),
        ([(9, 10)], 7, None),  # rows 8 and 9 are lost
        ([(12, 4), (-1, -1)], 8, 0),
    ],
)
def test_the_newest_that_continues_the_checkpoints_ledger_is_chosen(
    held: list[tuple[int, int]], saved: int, holder: int | None
) -> None:
    found = newest_holder({f"node-{number}": newest for number, newest in enumerate(held)}, saved)
    assert found == (None if holder is None else (f"node-{holder}", held[holder][0]))


@given(holders=st.integers(1, 40), lacking=st.integers(0, 1200))
def test_copies_spread_from_all_holders_and_no_node_serves_two_at_once(holders: int, lacking: int) -> None:
    have = {f"holder {number}" for number in range(holders)}
    waiting = [f"node {number}" for number in range(lacking)]
    rounds = list(copy_rounds(sorted(have), waiting))
    for copies in rounds:
        assert set(copies.values()) <= have, "only who has it can be asked"
        assert len(set(copies.values())) == len(copies)
        assert have.isdisjoint(copies)
        have |= copies.keys()
    assert set(waiting) <= have
    assert len(rounds) == math.ceil(math.log2((holders + lacking) / holders))
