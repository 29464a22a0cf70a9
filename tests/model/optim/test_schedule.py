import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.optim.config import ScheduleConfig
from model.optim.schedule import check_schedule, learning_rate

PEAK = 3e-4


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = ("constant", "cosine", "wsd", "inverse_sqrt")) -> tuple:
    """A schedule and a number of steps it fits into."""
    total_steps = draw(st.integers(1, 300))
    warmup_steps = draw(st.integers(0, total_steps - 1))
    name = draw(st.sampled_from(names))
    longest_decay = st.integers(1, total_steps - warmup_steps)
    fields = {
        "name": name,
        "warmup_steps": warmup_steps,
        "decay_steps": draw(st.none() | longest_decay) if name == "wsd" else None,
        "final_lr_fraction": draw(st.floats(0.0, 1.0)),
    }
    return ScheduleConfig.model_validate(fields), total_steps


def rates(config: ScheduleConfig, total_steps: int) -> list[float]:
    return [learning_rate(config, PEAK, step, total_steps) for step in range(total_steps + 1)]


@settings(deadline=None)
@given(schedules())
def test_rate_rises_once_then_never_rises_again(schedule: tuple[ScheduleConfig, int]) -> None:
    config, total_steps = schedule
    lr = rates(config, total_steps)
    warmup = config.warmup_steps
    assert all(later > earlier for earlier, later in pairwise(lr[: warmup + 1]))
    assert lr[warmup] == max(lr)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(lr[warmup:]))
    assert min(lr) >= 0.0
    if not (config.name == "wsd" and config.decay_steps == total_steps - warmup):
        assert lr[warmup] == pytest.approx(PEAK)


@settings(deadline=None)
@given(schedules())
def test_warmup_is_a_straight_line_to_the_peak(schedule: tuple[ScheduleConfig, int]) -> None:
    config, total_steps = schedule
    for step, lr in enumerate(rates(config, total_steps)[: config.warmup_steps + 1]):
        assert lr == pytest.approx(PEAK * (step + 1) / (config.warmup_steps + 1))


@settings(deadline=None)
@given(schedules())
def test_neighbouring_steps_never_jump(schedule: tuple[ScheduleConfig, int]) -> None:
    """No step changes the rate by more than the steepest slope of its formula, phase borders included."""
    config, total_steps = schedule
    drop = 1.0 - config.final_lr_fraction
    after_warmup = total_steps - config.warmup_steps
    shortest_decay = config.decay_steps or min(math.ceil(total_steps / 10), after_warmup)
    steepest = {
        "constant": 0.0,
        "cosine": drop * math.pi / 2 / after_warmup,
        "wsd": drop / shortest_decay,
        # The derivative of sqrt(w / s) at s = w = warmup_steps + 1.
        "inverse_sqrt": 0.5 / (config.warmup_steps + 1),
    }[config.name]
    limit = PEAK * max(steepest, 1 / (config.warmup_steps + 1) if config.warmup_steps else 0.0)
    lr = rates(config, total_steps)
    assert all(abs(later - earlier) <= limit + 1e-15 for earlier, later in pairwise(lr))


@settings(deadline=None)
@given(schedules(names=("cosine", "wsd")), st.integers(0, 50))
def test_decaying_schedules_end_on_their_fraction_and_stay(schedule: tuple[ScheduleConfig, int], beyond: int) -> None:
    config, total_steps = schedule
    assert learning_rate(config, PEAK, total_steps + beyond, total_steps) == pytest.approx(
        PEAK * config.final_lr_fraction
    )


def test_cosine_written_out() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=2, final_lr_fraction=0.2)
    # Quarters of the way from step 2 to step 10: cos is 1, sqrt(1/2), 0, -sqrt(1/2), -1.
    half_root = math.sqrt(0.5) / 2
    expected = {0: 1 / 3, 1: 2 / 3, 2: 1.0, 4: 0.2 + 0.8 * (0.5 + half_root), 6: 0.6, 10: 0.2}
    assert {step: learning_rate(config, 1.0, step, 10) for step in expected} == pytest.approx(expected)


def test_wsd_written_out() -> None:
    config = ScheduleConfig(name="wsd", warmup_steps=1, decay_steps=4, final_lr_fraction=0.2)
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert [learning_rate(config, 1.0, step, 8) for step in range(9)] == pytest.approx(expected)


def test_wsd_decays_over_a_tenth_by_default() -> None:
    lr = rates(ScheduleConfig(name="wsd", warmup_steps=5), 100)
    assert lr[90] == pytest.approx(PEAK) and lr[91] < PEAK * 0.95


def test_inverse_square_root_written_out() -> None:
    config = ScheduleConfig(name="inverse_sqrt", warmup_steps=3)
    expected = {0: 0.25, 2: 0.75, 3: 1.0, 15: 0.5, 63: 0.25}
    assert {step: learning_rate(config, 1.0, step, 100) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("d_model", "warmup"), [(512, 4000), (1024, 1), (64, 7)])
def test_the_schedule_of_the_transformers_paper(d_model: int, warmup: int) -> None:
    """Vaswani et al. 2017, eq. 3, at its step numbers, which count from 1."""
    config = ScheduleConfig(name="inverse_sqrt", warmup_steps=warmup - 1)
    for number in (1, 2, warmup - 1, warmup, warmup + 1, 50_000):
        paper = d_model**-0.5 * min(max(number, 1) ** -0.5, max(number, 1) * warmup**-1.5)
        ours = learning_rate(config, (d_model * warmup) ** -0.5, max(number, 1) - 1, 100_000)
        assert ours == pytest.approx(paper, rel=1e-12)


def test_constant_written_out() -> None:
    config = ScheduleConfig(name="constant", warmup_steps=1)
    assert [learning_rate(config, 2.0, step, 3) for step in range(6)] == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 10}, r"warmup_steps=10 leaves no steps of total_steps=10.*Largest that does: 9"),
        (
            {"name": "wsd", "warmup_steps": 4, "decay_steps": 7},
            r"warmup_steps=4 and decay_steps=7 together exceed total_steps=10\. Largest decay_steps that fits: 6",
        ),
    ],
)
def test_phases_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    config = ScheduleConfig.model_validate(fields)
    with pytest.raises(ValueError, match=message):
        check_schedule(config, 10)
    with pytest.raises(ValueError, match=message):
        learning_rate(config, PEAK, 0, 10)
    check_schedule(config, 11)
