"""The order of faults, and the cost that is computed for each."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from orchestrator.chaos.cost import command_restarts, costs, gaps_after, largest_difference, standstill_s
from orchestrator.chaos.faults import Injected, Injector
from orchestrator.chaos.plan import CAUSES, KINDS, draw_by_rates, draw_faults, gaps, rates, refuse_unknown
from orchestrator.cli.options import seconds_of
from orchestrator.run.record import Attempt

kinds_given = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True)


@given(kinds=kinds_given, seed=st.integers(0, 100), nodes=st.integers(2, 5))
def test_the_number_of_nodes_stays_within_its_bounds(kinds: list[str], seed: int, nodes: int) -> None:
    for kind in itertools.islice(draw_faults(kinds, seed, nodes, min_nodes=2, max_nodes=5), 60):
        nodes += KINDS[kind].node_change
        assert 2 <= nodes <= 5


@given(kinds=kinds_given, seed=st.integers(0, 100))
def test_every_kind_is_drawn_in_an_order_that_depends_on_the_seed_alone(kinds: list[str], seed: int) -> None:
    drawn = list(itertools.islice(draw_faults(kinds, seed, 4, min_nodes=2, max_nodes=5), 4 * len(kinds) + 8))
    assert set(kinds) <= set(drawn)
    assert drawn == list(itertools.islice(draw_faults(kinds, seed, 4, min_nodes=2, max_nodes=5), len(drawn)))


def test_every_kind_is_drawn_once_before_any_comes_again() -> None:
    drawn = draw_faults(list(KINDS), 1, 4, min_nodes=2, max_nodes=5)
    assert sorted(itertools.islice(drawn, len(KINDS))) == sorted(KINDS)


def test_the_interruptions_are_those_of_the_paper_and_all_kinds_but_joining_nodes_have_a_rate() -> None:
    assert sum(cause.interruptions for cause in CAUSES) == 419
    imitated = [kind for cause in CAUSES for kind in cause.kinds]
    assert sorted([*imitated, "add-node", "clock-skew"]) == sorted(KINDS)


def test_shares_of_a_soak_keep_the_mix_of_causes() -> None:
    everything = rates(list(KINDS))
    assert sum(everything.values()) == pytest.approx(1)
    assert everything["kill-worker"] / everything["hang-worker"] == pytest.approx(262 / 7)
    leaving = sum(share for kind, share in everything.items() if KINDS[kind].node_change < 0)
    assert everything["add-node"] + everything["clock-skew"] == pytest.approx(leaving), "nodes come as often as they go"
    assert rates(["kill-monitor", "hang-worker"])["kill-monitor"] == pytest.approx(56 / 63), "all that software has"
    with pytest.raises(InputError, match=r"add-node: no cause .* --soak needs others"):
        rates(["add-node"])


@given(seed=st.integers(0, 100), nodes=st.integers(2, 5))
def test_a_soak_is_a_function_of_its_seed_and_keeps_to_the_rates_and_the_bounds(seed: int, nodes: int) -> None:
    drawn = list(itertools.islice(draw_by_rates(list(KINDS), seed, nodes, min_nodes=2, max_nodes=5), 400))
    assert drawn == list(itertools.islice(draw_by_rates(list(KINDS), seed, nodes, min_nodes=2, max_nodes=5), 400))
    for kind in drawn:
        nodes += KINDS[kind].node_change
        assert 2 <= nodes <= 5
    assert 0.4 < Counter(drawn)["kill-worker"] / 400 < 0.75


def test_gaps_between_the_faults_of_a_soak_have_the_mean_that_was_asked_for() -> None:
    drawn = list(itertools.islice(gaps(20, seed=1), 4000))
    assert sum(drawn) / 4000 == pytest.approx(20, rel=0.1)
    assert drawn == list(itertools.islice(gaps(20, seed=1), 4000))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_method(kind: str) -> None:
    assert callable(getattr(Injector, f"_{kind.replace('-', '_')}"))


def test_an_unknown_fault_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InputError, match=r"(?s)kill-nod.*kill-node .*SIGKILL to a node"):
        refuse_unknown(["kill-nod"])
    with pytest.raises(InputError, match="none given"):
        refuse_unknown([])


@pytest.mark.parametrize(("text", "seconds"), [("20s", 20.0), ("1.5m", 90.0), ("7", 7.0)])
def test_times_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    with pytest.raises(InputError, match="give seconds"):
        seconds_of(f"about {text}")


def disruption(**fields: object) -> dict[str, object]:
    usual = {"cause": "crash", "step": 40, "workers": 2, "workers_after": 2, "replayed_steps": 3}
    return {**usual, "phases": {"teardown": 0.5, "state": 4.0}, **fields}


def test_a_sudden_death_costs_from_the_kill_to_the_first_new_step() -> None:
    """Last report at 99.5, killed at 100, detected at 101, a new step at 106."""
    [row] = costs([Injected("kill-worker", 100.0, "x")], [disruption(at=101.0, detection_s=1.5, lost_s=6.5)], 90.0)
    assert (row["at_s"], row["detect_s"], row["restart_s"], row["lost_s"]) == (10.0, 1.0, 5.0, 6.0)
    assert (row["restarts"], row["replayed_steps"], row["workers"]) == (1, 3, [2, 2])
    assert row["phases"] == {"teardown_s": 0.5, "state_s": 4.0}


def test_a_planned_restart_costs_from_the_pause() -> None:
    """Notice at 100, paused at 103 and detected at 103.2, a new step at 108."""
    [row] = costs([Injected("drain-node", 100.0, "x")], [disruption(at=103.2, detection_s=0.2, lost_s=5.0)], 90.0)
    assert (row["detect_s"], row["lost_s"]) == (pytest.approx(3.2), pytest.approx(5.0))


def test_a_disruption_belongs_to_the_fault_before_it() -> None:
    faults = [Injected("store-slow", 100.0, "x"), Injected("kill-node", 110.0, "y"), Injected("add-node", 130.0, "z")]
    disruptions = [
        disruption(at=112.0, detection_s=2.0, lost_s=9.0),
        disruption(at=125.0, detection_s=0.0, lost_s=None),
    ]
    rows = costs(faults, disruptions, 90.0)
    assert [row["restarts"] for row in rows] == [0, 2, 0]
    assert [row["lost_s"] for row in rows] == [0.0, None, 0.0], "the second has not ended"


def attempt(number: int, **fields: object) -> Attempt:
    usual = {"host": "h", "boot_id": "b", "pid": 1, "pid_started": "1", "started_at": 0.0, "heartbeat_at": 0.0}
    return Attempt(number, **{**usual, **fields})  # type: ignore[arg-type]


def test_a_killed_command_costs_until_the_first_step_of_the_next_one() -> None:
    """Last heartbeat at 98, killed at 100, started again at 101, a new step 9 s later."""
    attempts = [
        attempt(1, step=40, world_size=4, heartbeat_at=98.0),
        attempt(2, from_step=37, step=90, world_size=3, started_at=101.0, first_step_s=9.0),
    ]
    again = command_restarts(attempts)
    [row] = costs([Injected("kill-driver", 100.0, "x")], [disruption(at=130.0, detection_s=1.0, lost_s=4.0), *again], 0)
    assert (row["restarts"], row["cause"], row["replayed_steps"], row["workers"]) == (2, "command", 6, [4, 2])
    assert row["lost_s"] == pytest.approx(10.0 + 4.0)
    assert command_restarts(attempts[:1]) == []


@pytest.mark.parametrize(
    ("at", "until", "seconds"),
    [
        (2.5, 99.0, 7.5),  # from the fault to the next step
        (2.5, 8.0, 5.5),  # or to the next fault, which is in its way
        (5.0, 99.0, 5.0),  # hits the recovery of the one before
        (1.5, 99.0, 8.0),  # a step was completed after the fault, and none for long afterwards
        (10.5, 99.0, 0.5),
        (0.5, 0.7, pytest.approx(0.2)),  # before the first step
        (11.5, 99.0, None),
    ],
)
def test_standstill_is_the_longest_time_between_two_steps(at: float, until: float, seconds: float | None) -> None:
    assert standstill_s([1.0, 2.0, 10.0, 11.0], at, until) == seconds


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
