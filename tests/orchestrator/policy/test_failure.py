"""The failure policy: retry budgets by cause, with a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.failure import (
    CRASHES_PER_HOUR,
    ERRORS_AT_ONE_STEP,
    FAILURES_ALONE,
    NODES_WITHOUT_A_STEP,
    OUT_OF_MEMORY,
    Failure,
    FailurePolicy,
    GiveUp,
    Restart,
)


def died(step: int) -> Failure:
    return Failure(step, "crash", "killed by SIGKILL")


def test_a_death_leads_to_a_restart_that_states_the_numbers() -> None:
    decision = FailurePolicy().decide(died(120), now=0.0)
    assert decision == Restart(
        "a worker died after step 120 (failure 1 of at most 10 within an hour): killed by SIGKILL"
    )


def test_an_error_that_repeats_at_its_step_ends_the_run() -> None:
    policy = FailurePolicy()
    for _ in range(ERRORS_AT_ONE_STEP):
        assert isinstance(policy.decide(Failure(7, "error", "boom"), now=0.0), Restart)
    decision = policy.decide(Failure(7, "error", "boom"), now=0.0)
    assert isinstance(decision, GiveUp)
    assert "step 7" in decision.why and "the cause is in the run" in decision.why


def test_deaths_that_repeat_at_one_step_end_the_run() -> None:
    policy = FailurePolicy()
    decisions = [policy.decide(died(7), now=at * 10_000.0) for at in range(ERRORS_AT_ONE_STEP + 1)]
    assert [type(each) for each in decisions] == [Restart] * ERRORS_AT_ONE_STEP + [GiveUp]


def test_progress_between_failures_resets_the_count_at_a_step() -> None:
    policy = FailurePolicy()
    for step in (7, 7, 8, 8, 9, 9, 7, 7):
        assert isinstance(policy.decide(Failure(step, "error", "boom"), now=0.0), Restart)


@given(gaps=st.lists(st.floats(0.0, 4000.0), min_size=1, max_size=60))
def test_deaths_are_retried_up_to_the_budget_of_any_hour(gaps: list[float]) -> None:
    """Against the definition: give up exactly when the hour before a death holds more deaths than the budget."""
    policy, now, deaths = FailurePolicy(), 0.0, []
    for step, gap in enumerate(gaps):
        now += gap
        deaths.append(now)
        within = sum(now - at < 3600.0 for at in deaths)
        decision = policy.decide(died(step), now)
        assert isinstance(decision, GiveUp) == (within > CRASHES_PER_HOUR)


def test_lost_nodes_have_no_limit_while_steps_are_completed_and_do_not_count_as_crashes() -> None:
    policy = FailurePolicy()
    for step in range(10 * CRASHES_PER_HOUR):
        assert isinstance(policy.decide(Failure(step, "node", "reclaimed"), now=0.0), Restart)
    assert isinstance(policy.decide(died(7), now=0.0), Restart)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("its node died.", "If nodes run out of memory (`OOMKilled` in Kubernetes), lower train.micro_batch_size"),
        (f"process 7: {OUT_OF_MEMORY}: killed", "It ran out of memory: lower train.micro_batch_size"),
    ],
)
def test_nodes_that_are_lost_again_and_again_without_a_new_step_end_the_run(reason: str, told: str) -> None:
    """Also where the groups between them repeat older steps: nothing new is completed."""
    policy = FailurePolicy()
    assert isinstance(policy.decide(Failure(5, "node", reason), now=0.0), Restart)
    steps = (7, *(5 + number % 3 for number in range(NODES_WITHOUT_A_STEP - 1)))
    decisions = [policy.decide(Failure(step, "node", reason), now=1e4 * step) for step in steps]
    assert all(isinstance(each, Restart) for each in decisions)
    decision = policy.decide(Failure(6, "node", reason), now=0.0)
    assert isinstance(decision, GiveUp)
    assert decision.why.startswith(
        f"{NODES_WITHOUT_A_STEP + 1} times in a row a node was lost, and no step after step 7"
    )
    assert decision.why.endswith(told) and reason.rstrip(".") in decision.why


NODES = frozenset({"a" * 40, "b" * 40, "c" * 40})
BAD = "b" * 40


def alone(step: int, *failed_on: str, nodes: frozenset[str] = NODES) -> Failure:
    return Failure(step, "crash", "killed by SIGKILL", frozenset(failed_on), nodes)


def test_a_node_whose_workers_fail_twice_in_a_row_alone_is_named_and_avoided() -> None:
    policy = FailurePolicy()
    decisions = [policy.decide(alone(step, BAD), now=0.0) for step in range(FAILURES_ALONE)]
    assert policy.avoided == {BAD}
    assert "failed" not in decisions[0].why.partition("killed by SIGKILL")[2]
    assert "Workers on node bbbbbbbbbbbb failed 2 times in a row, and those of other nodes did not" in decisions[1].why


@pytest.mark.parametrize(
    "failures",
    [
        [alone(1, BAD), alone(2, "a" * 40), alone(3, BAD)],  # not in a row
        [alone(1, BAD, "a" * 40), alone(2, BAD, "a" * 40)],  # not alone
        [alone(1), alone(2)],  # not known where
        [alone(1, BAD, nodes=frozenset({BAD})), alone(2, BAD, nodes=frozenset({BAD}))],  # no other node to compare with
    ],
)
def test_a_node_is_not_blamed_for_what_happens_elsewhere_too(failures: list[Failure]) -> None:
    policy = FailurePolicy()
    for failure in failures:
        policy.decide(failure, now=0.0)
    assert policy.avoided == frozenset()


def test_hangs_and_deaths_share_a_budget() -> None:
    policy = FailurePolicy()
    for step in range(CRASHES_PER_HOUR):
        failure = Failure(step, "hang" if step % 2 else "crash", "silent")
        assert isinstance(policy.decide(failure, now=0.0), Restart)
    assert isinstance(policy.decide(Failure(99, "hang", "silent"), now=1.0), GiveUp)


def test_one_loss_spike_is_skipped_and_a_second_ends_the_run() -> None:
    policy = FailurePolicy()
    decision = policy.decide_on_loss_spike(31, "loss=nan in step 31")
    assert decision == Restart("loss=nan in step 31; going back to a state before step 31, whose data is skipped")
    assert policy.skipped_steps == {31}
    assert isinstance(policy.decide_on_loss_spike(31, "loss=nan"), GiveUp) and policy.skipped_steps == {31}
