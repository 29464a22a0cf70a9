"""The report of a sweep: it stands by itself, has every trial, escapes everything, and stumbles over no summary."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from orchestrator.sweep.report.page import html
from tests.html_page import Page, assert_closed, has_nothing_from_elsewhere, places, shown
from tests.orchestrator.sweep.summaries import realistic, summaries

any_summary = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def trials_of(page: Page) -> list[str]:
    """Ids of the rows of the table of trials."""
    return [
        attributes["data-trial"] or ""
        for tag, attributes in page.elements
        if tag == "tr" and "data-trial" in attributes
    ]


@any_summary
@given(summaries())
def test_any_summary_gives_a_page_with_every_trial(summary: dict[str, Any]) -> None:
    page = Page(html(summary))
    assert sorted(trials_of(page)) == sorted(shown(trial["id"]) for trial in summary["trials"])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert has_nothing_from_elsewhere(page)


@any_summary
@given(summaries())
def test_every_coordinate_of_a_chart_is_finite(summary: dict[str, Any]) -> None:
    assert all(abs(place) < 1e7 for place in places(html(summary)))


def test_the_page_of_a_usual_sweep_has_all_its_parts() -> None:
    summary = realistic(pbt=True)
    page = Page(html(summary))
    titles = page.texts["h2"]
    assert titles == [
        "Best curve",
        "All learning curves",
        "Loss against each number by optimizer.name",
        "Every trial over all fields",
        "Loss against cost",
        "Importance of fields",
        "Time and cost",
        "Trials that continued from another trial's state",
        "All trials",
    ]
    charts = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    ids = {attributes.get("id") for _, attributes in page.elements}
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= ids
    # linear and logarithmic curves, best, best so far, three numbers and a decay, parallel, loss against time, bars,
    # timeline, ancestry
    assert len(charts) == 13
    text = html(summary)
    assert "24 of 24" in text and "each once" in text
    assert "the loss of step 53 is no number, twice; lr 0.08" in text
    assert summary["best"]["recipe"] in text


def test_a_failed_trial_is_shown_with_its_config_and_reason() -> None:
    summary = realistic()
    [failed] = [trial for trial in summary["trials"] if trial["status"] == "failed"]
    [row] = re.findall(rf'<tr data-trial="{failed["id"]}">.*?</tr>', html(summary))
    assert failed["reason"] in row
    assert f'data-v="{failed["config"]["train.lr"]!r}"' in row
    assert "not used by this trial" in row  # weight decay, which sgd has not


def test_a_field_that_a_trial_does_not_use_leaves_a_gap() -> None:
    text = html(realistic())
    parallel = text[text.index('aria-labelledby="parallel-t') :]
    parallel = parallel[: parallel.index("</svg>")]
    marks = dict(re.findall(r'<g class="mark [^"]*" data-trial="(t\d+)">(.*?)</g>', parallel, re.DOTALL))
    # Without momentum and weight decay: optimizer and rate, then warm-up and loss. With momentum: three, then two.
    points = {
        id: [len(line.split()) for line in re.findall(r'points="([^"]*)" class="curve"', drawn)]
        for id, drawn in marks.items()
    }
    assert points["t004"] == [2, 2]
    assert points["t000"] == [3, 2]


@pytest.mark.parametrize(
    "word", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "&amp;"]
)
def test_every_text_of_the_summary_is_escaped(word: str) -> None:
    summary = json.loads(json.dumps(realistic()).replace("adamw", "WORD").replace("t004", "TRIAL"))

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {put(name): put(each) for name, each in value.items()}
        if isinstance(value, list):
            return [put(each) for each in value]
        return word if value in ("WORD", "TRIAL") else value

    summary = put(summary) | {name: word for name in ("sweep", "status", "message", "metric", "searcher", "scheduler")}
    for trial in summary["trials"]:
        trial |= {"reason": word, "run": word}
    summary["best"]["recipe"] = word
    summary["space"] = {word: {"kind": "choice", "values": [word, "b"], "when": {word: word}}} | summary["space"]
    text = html(summary)
    page = Page(text)
    assert word in trials_of(page)
    assert {"img", "b"} & {tag for tag, _ in page.elements} <= {"b"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert text.count("<script") == 1


def test_nothing_is_fetched_and_only_the_page_s_own_script_may_run() -> None:
    assert_closed(html(realistic()))


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_few_trials_are_enough_for_a_page(trials: int) -> None:
    summary = realistic(trials=trials) if trials else realistic() | {"trials": [], "best": None, "rungs": []}
    assert len(trials_of(Page(html(summary)))) == trials


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["", "the loss is not finite; " * 80])
def test_a_thousand_trials_with_long_curves_give_a_page_of_a_few_megabytes(reason: str) -> None:
    summary = realistic(trials=1000)
    for trial in summary["trials"]:
        trial["curve"] = [[step, 7 - step / 1000] for step in range(1, 3001)]
        trial |= {"step": 3000, "steps": 3000, "reason": reason}
    text = html(summary)
    assert len(text.encode()) - 1000 * len(reason) < 5_000_000  # the table has every reason in full
    assert len(trials_of(Page(text))) == 1000
