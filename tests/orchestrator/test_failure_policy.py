"""Failures in, decisions out: budgets by cause, with a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.failure_policy import CRASHES_PER_HOUR, ERRORS_AT_ONE_STEP, Failure, FailurePolicy, GiveUp, Restart


def died(step: int) -> Failure:
    return Failure(step, is_death=True, reason="killed by SIGKILL")


def test_a_death_is_an_accident_and_its_numbers_are_told() -> None:
    decision = FailurePolicy().decide(died(120), now=0.0)
    assert decision == Restart("a worker died after step 120, 1 of 10 deaths an hour: killed by SIGKILL")


def test_an_error_that_comes_back_at_its_step_ends_the_run() -> None:
    policy = FailurePolicy()
    for _ in range(ERRORS_AT_ONE_STEP):
        assert isinstance(policy.decide(Failure(7, is_death=False, reason="boom"), now=0.0), Restart)
    decision = policy.decide(Failure(7, is_death=False, reason="boom"), now=0.0)
    assert isinstance(decision, GiveUp)
    assert "step 7" in decision.why and "in the run" in decision.why


def test_a_death_at_the_same_step_over_and_over_is_the_step_too() -> None:
    policy = FailurePolicy()
    decisions = [policy.decide(died(7), now=at * 10_000.0) for at in range(ERRORS_AT_ONE_STEP + 1)]
    assert [type(each) for each in decisions] == [Restart] * ERRORS_AT_ONE_STEP + [GiveUp]


def test_progress_between_two_failures_clears_the_step_of_blame() -> None:
    policy = FailurePolicy()
    for step in (7, 7, 8, 8, 9, 9, 7, 7):
        assert isinstance(policy.decide(Failure(step, is_death=False, reason="boom"), now=0.0), Restart)


@given(gaps=st.lists(st.floats(0.0, 4000.0), min_size=1, max_size=60))
def test_deaths_are_let_pass_up_to_the_budget_of_any_hour(gaps: list[float]) -> None:
    """Against the definition: give up exactly when the hour before a death holds more deaths than the budget."""
    policy, now, deaths = FailurePolicy(), 0.0, []
    for step, gap in enumerate(gaps):
        now += gap
        deaths.append(now)
        within = sum(now - at < 3600.0 for at in deaths)
        decision = policy.decide(died(step), now)
        assert isinstance(decision, GiveUp) == (within > CRASHES_PER_HOUR)
