"""The time scale keeps order, shortens long pauses, and has round ticks that are apart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.time_scale import PAUSE_PART, PAUSES_PART, TimeScale, since

no_deadline = settings(deadline=None)


@st.composite
def scales(draw: st.DrawFn) -> tuple[TimeScale, list[tuple[float, float]], float]:
    at, pauses = 0.0, []
    for _ in range(draw(st.integers(0, 8))):
        start = at + draw(st.floats(0.1, 1e5))
        at = start + draw(st.floats(0.1, 1e7))
        pauses.append((start, at))
    ended = at + draw(st.floats(0.0, 1e5))
    return TimeScale(0.0, ended, 50.0, 850.0, pauses), pauses, ended


@no_deadline
@given(scales(), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_later_times_are_further_right(
    made: tuple[TimeScale, list[tuple[float, float]], float], parts: list[float]
) -> None:
    scale, pauses, ended = made
    moments = sorted([*(part * ended for part in parts), *(moment for pause in pauses for moment in pause)])
    places = [scale(moment) for moment in moments]
    assert all(before <= after + 0.01 for before, after in pairwise(places))
    assert scale(-5.0) == 50.0 and abs(scale(ended + 1e6) - 850.0) < 0.01


@no_deadline
@given(scales())
def test_pauses_take_little_room(made: tuple[TimeScale, list[tuple[float, float]], float]) -> None:
    scale, pauses, _ = made
    widths = [scale(end) - scale(start) for start, end in scale.shortened]
    assert set(scale.shortened) <= set(pauses)
    assert all(width <= 800 * PAUSE_PART + 0.01 for width in widths)
    assert sum(widths) <= 800 * PAUSES_PART + 0.01


@no_deadline
@given(scales(), st.floats(40, 200))
def test_ticks_are_apart(made: tuple[TimeScale, list[tuple[float, float]], float], apart: float) -> None:
    places = [at for at, _ in made[0].ticks(apart)]
    assert all(after - before >= 0.8 * apart - 0.01 for before, after in pairwise(places))
    assert all(50.0 <= at <= 850.0 + 0.01 for at in places)


def test_ticks_after_a_pause_show_the_time_since_the_start() -> None:
    scale = TimeScale(1000.0, 1000.0 + 7200 + 600, 0.0, 800.0, [(1300.0, 1300.0 + 7200)])
    assert [text for _, text in scale.ticks(100.0)] == ["0", "2 min", "4 min", "2:06 h", "2:08 h", "2:10 h"]


def test_times_have_readable_units() -> None:
    expected = {0: "0", 45: "45 s", 90: "1:30 min", 120: "2 min", 3600: "1 h", 5400: "1:30 h", 3605: "1:00:05 h"}
    expected |= {86400: "1 d", 97200: "1 d 3 h", 90300: "1 d 1:05 h", 86460: "1 d 0:01 h"}
    assert {seconds: since(seconds) for seconds in expected} == expected
