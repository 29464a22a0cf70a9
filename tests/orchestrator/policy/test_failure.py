"""The failure policy: retry budgets by cause, with a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.failure import (
    CRASHES_PER_HOUR,
    ERRORS_AT_ONE_STEP,
    FIRST_STEP_S,
    HANG_FACTOR,
    HANG_S,
    Failure,
    FailurePolicy,
    GiveUp,
    Restart,
    is_hung,
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


def test_lost_nodes_have_no_limit_and_do_not_count_at_a_step() -> None:
    policy = FailurePolicy()
    for _ in range(10 * CRASHES_PER_HOUR):
        assert isinstance(policy.decide(Failure(7, "node", "reclaimed"), now=0.0), Restart)
    assert isinstance(policy.decide(died(7), now=0.0), Restart)


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


@pytest.mark.parametrize(("step_s", "limit_s"), [(None, FIRST_STEP_S), (0.001, HANG_S), (HANG_S, HANG_FACTOR * HANG_S)])
def test_a_hang_is_silence_for_many_steps_and_a_minimum_time(step_s: float | None, limit_s: float) -> None:
    assert not is_hung(limit_s, step_s) and is_hung(limit_s + 0.01, step_s)
