"""The report of a run is self-contained, adds up, escapes all text, and can be built from any summary."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.report.goodput import REST, bar, seconds_of
from orchestrator.report.run import html
from orchestrator.report.run_facts import Event, RunFacts, clusters
from orchestrator.report.svg import NARROW, WIDE
from orchestrator.run.goodput import CAUSES
from tests.html_page import Page, assert_closed, has_nothing_from_elsewhere, places
from tests.orchestrator.report.run_summaries import BEGAN, before_first_step, eventful, summaries

no_deadline = settings(deadline=None)
any_summary = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


@any_summary
@given(summaries())
def test_any_summary_gives_a_page(summary: dict[str, Any]) -> None:
    text = html(summary)
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert has_nothing_from_elsewhere(page)
    assert all(abs(place) < 1e7 for place in places(text))
    assert "nan" not in re.sub(r">[^<]*<", "><", text).lower()


def test_the_page_of_an_eventful_run_has_all_its_parts() -> None:
    page = Page(html(eventful()))
    assert page.texts["h2"] == [
        "Learning curves",
        "Workers and events",
        "Where the time went",
        "Samples",
        "Data",
        "Checkpoints",
        "Decisions about workers",
        "Config",
        "Versions",
    ]
    charts = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert all(set((chart["aria-labelledby"] or "").split()) <= ids for chart in charts)
    # In two sizes: loss, its logarithm, time, steps, seconds, overhead; and learning rate, norm and speed.
    assert len(charts) == 2 * 6 + 4
    text = html(eventful())
    for shown in (
        "31.25",
        "BLEU over 500",
        "the disk is full",
        "shard 3 is cut short",
        "python 3.11.9",
        "step 99",
    ):
        assert shown in text


def test_before_the_first_step_the_page_says_so() -> None:
    text = html(before_first_step())
    assert "before its first step" in text and "No checkpoint yet" in text and "Nothing to audit" in text
    assert "startup 12.0 s (100 %)" in text and "enlarged" not in text and "workers that trained" not in text
    assert "Learning curves" not in text


def test_a_live_run_says_up_to_which_step_the_report_goes() -> None:
    summary = eventful() | {"status": "running", "phase": "training"}
    summary["lives"][-1] |= {"status": "running", "step": 640}
    assert "at step 640 (training). The report goes up to its newest checkpoint: step 600" in html(summary)


def test_a_lost_sample_is_stated() -> None:
    summary = eventful()
    summary["samples"] |= {"missing": 1, "in_order": False}
    assert "NOT every sample once and in order." in html(summary)


def test_samples_that_were_too_many_to_audit_are_counted() -> None:
    assert "8,000 expected; manta report --audit" in html(eventful() | {"samples": {"expected": 8000}})


def test_a_run_of_an_older_version_is_shown() -> None:
    summary = eventful() | {"evaluations": [], "saves": []}
    for life in summary["lives"]:
        del life["versions"]
    text = html(summary)
    assert "The run's record does not have them." in text and "Learning curves" in text


def test_a_long_run_with_many_events_is_a_page_of_less_than_a_megabyte() -> None:
    summary = eventful(steps=100_000)
    one = summary["disruptions"][0]
    summary["disruptions"] = [one | {"number": n + 1, "step": n * 100, "at": BEGAN + 50 * n} for n in range(900)]
    summary["restart_counts"] = {"node": 1200}
    summary["decisions"] = [{"attempt": 1, "at": BEGAN + n, "step": n, "what": "starting " * 12} for n in range(2000)]
    summary["evaluations"] = [{"step": 100 * n, "at": BEGAN + n, "val_loss": 4.0} for n in range(1, 900)]
    text = html(summary)
    assert len(text) < 1_000_000
    assert "the newest 300 of 1,200; manta show --json has 900" in text
    assert "the newest 300 of 2,000; manta show --json has all" in text
    assert "restarts after failures" in text and ">1,200<" in text


WORD = "<script>alert(1)</script>"


@pytest.mark.parametrize("word", [WORD, '"><img src=x onerror=alert(1)>', "' onload='x", "&amp;"])
def test_every_text_of_the_summary_is_escaped(word: str) -> None:
    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(each) for key, each in value.items()}
        if isinstance(value, list):
            return [put(each) for each in value]
        return word if isinstance(value, str) else value

    summary = put(eventful())
    text = html(summary)
    page = Page(text)
    assert has_nothing_from_elsewhere(page)
    assert text.count("<script") == 1
    for element in ("h1", "span", "p", "td", "code", "title", "li"):
        assert any(word in each for each in page.texts[element]), element


@no_deadline
@given(st.dictionaries(st.sampled_from(CAUSES), st.floats(0, 1e7)), st.floats(0, 1e8), st.sampled_from([WIDE, NARROW]))
def test_the_parts_of_the_bar_fill_it(seconds: dict[str, float], wall: float, size: Any) -> None:
    seconds_shown = seconds_of({f"{cause}_s": each for cause, each in seconds.items()} | {"wall_s": wall})
    assert all(each > 0 for each in seconds_shown.values())
    assert sum(seconds_shown.values()) >= wall * 0.998 or not seconds_shown
    drawn = bar("seconds", "Seconds", seconds_shown, size)
    assert bool(drawn) == bool(seconds_shown)
    if seconds_shown:
        widths = [float(width) for width in re.findall(r'y="0" width="([\d.]+)"', drawn)]
        assert len(widths) == len(seconds_shown)
        assert sum(widths) == pytest.approx(size.width)
        for width, each in zip(widths, seconds_shown.values(), strict=True):
            assert width == pytest.approx(size.width * each / sum(seconds_shown.values()), abs=0.11)


def test_wall_time_without_a_cause_is_shown() -> None:
    assert seconds_of({"training_s": 90.0, "wall_s": 100.0}) == {"training": 90.0, REST: 10.0}
    assert seconds_of({"training_s": 99.99, "wall_s": 100.0}) == {"training": 99.99}


def test_every_cause_has_a_meaning_and_a_colour() -> None:
    text = html(
        before_first_step() | {"goodput": {f"{cause}_s": 1.0 for cause in CAUSES} | {"wall_s": 1.0 * len(CAUSES)}}
    )
    for cause in CAUSES:
        assert f".c-{cause.replace('_', '-')} {{ fill: var(--{cause}); }}" in text
        assert f"--{cause}: #" in text


@no_deadline
@given(st.lists(st.floats(0, 800), max_size=60), st.floats(1, 50))
def test_events_that_lie_close_together_are_drawn_as_one_and_none_is_lost(at: list[float], apart: float) -> None:
    events = [Event("restart", n, x, "", n) for n, x in enumerate(at)]
    found = clusters(events, lambda event: event.at or 0.0, apart)
    assert sorted(event.number for _, together in found for event in together) == sorted(range(len(at)))
    marks = [x for x, _ in found]
    assert all(after - before >= apart for before, after in pairwise(marks))


def test_restarts_within_seconds_have_one_mark_with_their_numbers() -> None:
    drawn = re.findall(r'<svg[^>]*aria-labelledby="time-wide-t.*?</svg>', html(eventful()), re.DOTALL)[0]
    pills = [
        mark for mark in re.findall(r'<g class="mark">.*?</g>', drawn, re.DOTALL) if 'class="pill restart"' in mark
    ]
    assert ["1: after step 150" in pill for pill in pills] == [True, False]
    assert "2: after step 151" in pills[0] and "3: after step 152" in pills[0]
    assert ">1-3</text>" in pills[0]


def test_workers_over_time_are_those_that_trained() -> None:
    facts = RunFacts(eventful())
    spans = facts.sizes_by_time()
    kinds = {span.kind for span in spans}
    assert kinds == {"", "pause", "startup", "restart", "resize"}
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(ordered))
    assert ordered[0].start == facts.began and ordered[-1].end == facts.ended
    [pause] = [span for span in spans if span.kind == "pause"]
    assert (pause.start, pause.end) == (facts.lives[0]["ended_at"], facts.lives[1]["started_at"])
    assert [(span.start, span.end, span.size) for span in facts.sizes_by_step()] == [
        (0, 150, 3),
        (150, 200, 1),
        (200, 600, 4),
    ]


def test_an_attempt_ends_at_the_step_that_the_next_one_continued_from() -> None:
    assert [(first, last) for first, last, _ in RunFacts(eventful()).attempts_by_step()] == [(0, 400), (400, 600)]


def test_a_step_after_a_missing_one_has_no_speed() -> None:
    rows = {name: values[:10] for name, values in eventful()["rows"].items()}
    without_one = {name: [*values[:3], *values[4:]] for name, values in rows.items()}
    points, seconds = RunFacts({"rows": without_one}).speed()
    assert [step for step, _ in points] == [1, 2, 3, 6, 7, 8, 9, 10]
    assert points[1][1] == (rows["tokens"][1] - rows["tokens"][0]) / 0.5 and seconds == [0.5] * 8


def test_the_page_fetches_nothing_and_runs_only_its_own_script() -> None:
    assert_closed(html(eventful()))


def test_the_summary_is_json() -> None:
    summary = eventful()
    assert html(json.loads(json.dumps(summary))) == html(summary)
