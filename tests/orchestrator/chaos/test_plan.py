"""Faults in an order that the seed decides, and what each is said to have cost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from orchestrator.chaos.cost import costs, gaps_after, largest_difference
from orchestrator.chaos.faults import Injected
from orchestrator.chaos.plan import KINDS, LOSING, draw_faults, refuse_unknown
from orchestrator.cli.options import seconds_of

kinds_given = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True)


@given(kinds=kinds_given, seed=st.integers(0, 100), nodes=st.integers(2, 5))
def test_there_are_never_fewer_nodes_than_the_run_needs_nor_more_than_the_machine_bears(
    kinds: list[str], seed: int, nodes: int
) -> None:
    for kind in itertools.islice(draw_faults(kinds, seed, nodes, min_workers=2, max_workers=5), 60):
        nodes += (kind == "add-node") - (kind in LOSING)
        assert 2 <= nodes <= 5


@given(kinds=kinds_given, seed=st.integers(0, 100))
def test_every_kind_comes_and_the_seed_decides_when(kinds: list[str], seed: int) -> None:
    drawn = list(itertools.islice(draw_faults(kinds, seed, 4, min_workers=2, max_workers=5), 4 * len(kinds) + 8))
    assert set(kinds) <= set(drawn)
    assert drawn == list(itertools.islice(draw_faults(kinds, seed, 4, min_workers=2, max_workers=5), len(drawn)))


def test_nine_faults_of_nine_kinds_are_each_of_them_once() -> None:
    assert sorted(itertools.islice(draw_faults(list(KINDS), 1, 4, min_workers=2, max_workers=5), 9)) == sorted(KINDS)


def test_an_unknown_fault_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"(?s)kill-nod.*kill-node .*SIGKILL to a node"):
        refuse_unknown(["kill-nod"])
    with pytest.raises(InputError, match="none given"):
        refuse_unknown([])


@pytest.mark.parametrize(("text", "seconds"), [("20s", 20.0), ("1.5m", 90.0), ("7", 7.0)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    with pytest.raises(InputError, match="give seconds"):
        seconds_of(f"about {text}")


def disruption(**fields: object) -> dict[str, object]:
    usual = {"cause": "crash", "step": 40, "workers": 2, "workers_after": 2, "replayed_steps": 3}
    return {**usual, "phases": {"teardown": 0.5, "state": 4.0}, **fields}


def test_a_sudden_death_costs_from_the_kill_to_the_first_new_step() -> None:
    """Last word at 99.5, killed at 100, noticed at 101, a new step at 106."""
    [row] = costs([Injected("kill-worker", 100.0, "x")], [disruption(at=101.0, detection_s=1.5, lost_s=6.5)], 90.0)
    assert (row["at_s"], row["detect_s"], row["restart_s"], row["lost_s"]) == (10.0, 1.0, 5.0, 6.0)
    assert (row["restarts"], row["replayed_steps"], row["workers"]) == (1, 3, [2, 2])
    assert row["phases"] == {"teardown_s": 0.5, "state_s": 4.0}


def test_a_planned_restart_costs_from_the_pause() -> None:
    """Told at 100, paused at 103 and known at 103.2, a new step at 108."""
    [row] = costs([Injected("drain-node", 100.0, "x")], [disruption(at=103.2, detection_s=0.2, lost_s=5.0)], 90.0)
    assert (row["detect_s"], row["lost_s"]) == (pytest.approx(3.2), pytest.approx(5.0))


def test_a_disruption_belongs_to_the_fault_before_it() -> None:
    faults = [Injected("store-slow", 100.0, "x"), Injected("kill-node", 110.0, "y"), Injected("add-node", 130.0, "z")]
    its = [disruption(at=112.0, detection_s=2.0, lost_s=9.0), disruption(at=125.0, detection_s=0.0, lost_s=None)]
    rows = costs(faults, its, 90.0)
    assert [row["restarts"] for row in rows] == [0, 2, 0]
    assert [row["lost_s"] for row in rows] == [0.0, None, 0.0], "the second has not ended"


def test_losses_are_compared_step_by_step() -> None:
    assert largest_difference([2.0, 4.0], [2.0, 4.0]) == 0.0
    assert largest_difference([2.0, 4.0], [2.0, 4.4]) == pytest.approx(0.1)
    assert largest_difference([2.0, None], [2.0, None]) == 0.0
    assert largest_difference([2.0, None], [2.0, 1.0]) is None
    assert largest_difference([2.0], [2.0, 1.0]) is None


def test_gaps_in_a_log_of_steps() -> None:
    steps = [{"step": n, "at": float(n)} for n in (1, 2, 3, 4)]
    steps += [{"step": 3, "at": 20.0}, {"step": 4, "at": 21.0}, {"step": 5, "at": 22.0}]
    rows = gaps_after([Injected("kill-node", 4.5, "x"), Injected("kill-worker", 30.0, "y")], steps)
    assert [(row["lost_s"], row["replayed_steps"]) for row in rows] == [(17.5, 2), (None, 0)]
