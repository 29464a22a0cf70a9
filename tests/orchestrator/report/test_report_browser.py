"""The report in a real browser: nothing is fetched, nothing goes wrong, and all is drawn and fits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.run import html
from orchestrator.sweep.report.page import html as html_of_sweep
from tests.browser import Tab, tab
from tests.orchestrator.report.run_summaries import before_first_step, eventful
from tests.orchestrator.sweep.summaries import realistic

pytestmark = pytest.mark.slow

PHONE, COORDINATOR = 400, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports as files."""
    folder = tmp_path_factory.mktemp("reports")
    odd = eventful() | {"run": "x" * 300, "message": "</script><script>throw new Error('ran')</script>" + "y" * 500}
    made = {
        "eventful": html(eventful()),
        "long": html(eventful(20_000)),
        "early": html(before_first_step()),
        "odd": html(odd),
        "sweep": html_of_sweep(realistic(pbt=True)),
    }
    for name, content in made.items():
        (folder / f"{name}.html").write_text(content, "utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, COORDINATOR])
@pytest.mark.parametrize("name", ["eventful", "long", "early", "odd", "sweep"])
def test_a_page_fits_and_nothing_is_fetched_or_goes_wrong(
    browser: Tab, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width, dark=dark)
    asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert asked == [pages[name].as_uri()]
    assert browser.told("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.documentElement.clientWidth") == width
    # Text and what it stands on differ, as they do not where a theme is only half there.
    ink, paper = browser.value("((s) => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in (ink, paper)]
    assert (light[0] > 150 and light[1] < 80) if dark else (light[0] < 80 and light[1] > 150)


CHARTS = """
[...document.querySelectorAll("svg[role=img]")].filter(svg => svg.checkVisibility()).map(svg => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent)
    .map(text => text.getBoundingClientRect());
  const drawn = [...svg.querySelectorAll("polyline, rect, polygon")].map(each => each.getBoundingClientRect());
  return {
    name: svg.getAttribute("aria-labelledby").split(" ")[0].slice(0, -2),
    width: box.width,
    height: box.height,
    drawn: drawn.filter(each => each.width > 1 && each.height > 0).length,
    text: Math.min(...texts.map(text => Math.min(text.height, text.width + 99))),
    outside: texts.filter(text => text.left < box.left - 1 || text.right > box.right + 1).length,
  };
})
"""


def charts_of(browser: Tab) -> dict[str, dict[str, Any]]:
    """The charts that are shown, by name."""
    return {chart["name"]: chart for chart in browser.value(CHARTS)}


@pytest.mark.parametrize(("width", "size"), [(COORDINATOR, "wide"), (PHONE, "narrow")])
@pytest.mark.parametrize("name", ["eventful", "long"])
def test_the_charts_are_drawn_and_legible(
    browser: Tab, pages: dict[str, Path], name: str, width: int, size: str
) -> None:
    browser.open(pages[name], width)
    charts = charts_of(browser)
    expected = {f"{chart}-{size}" for chart in ("loss", "time", "steps", "seconds", "overhead")}
    assert set(charts) == expected | {"lr-small", "norm-small", "speed-small", "bleu-small"}
    for chart in charts.values():
        assert chart["drawn"] > 0 and chart["width"] > 250 and chart["height"] > 20, chart
        assert chart["text"] >= 10, f"letters {chart['text']} pixels high in {chart['name']}"
        assert chart["outside"] == 0, chart


def test_the_other_axis_is_shown_when_asked_for(browser: Tab, pages: dict[str, Path]) -> None:
    browser.open(pages["eventful"], COORDINATOR)
    browser.value("document.querySelector('label[for=loss-axis-log]').click()")
    assert "loss-log-wide" in charts_of(browser) and "loss-wide" not in charts_of(browser)


def test_a_place_that_is_pointed_at_tells_its_values(browser: Tab, pages: dict[str, Path]) -> None:
    browser.open(pages["eventful"], COORDINATOR)
    box = browser.value(
        "(rect => { rect.scrollIntoView({block: 'center'}); const b = rect.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2] })(document.querySelectorAll('.wide-only .slice rect')[40])"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    told = browser.value("document.getElementById('tip').textContent")
    assert told.startswith("step ") and "training loss" in told
    assert browser.value("getComputedStyle(document.getElementById('tip')).display") == "block"


def test_events_of_one_lane_do_not_cover_each_other(browser: Tab, pages: dict[str, Path]) -> None:
    browser.open(pages["eventful"], PHONE)
    pills = browser.value(
        "[...document.querySelectorAll('.narrow .pill.restart')].filter(each => each.checkVisibility())"
        ".map(each => each.getBoundingClientRect()).map(box => [box.top, box.left, box.right])"
    )
    assert len(pills) >= 3
    for (top, _, right), (next_top, left, _) in pairwise(pills):
        assert top != next_top or right <= left + 1


def test_on_paper_everything_is_black_on_white_and_wide(browser: Tab, pages: dict[str, Path]) -> None:
    browser.open(pages["eventful"], COORDINATOR, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert "time-wide" in charts_of(browser) and "time-narrow" not in charts_of(browser)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
