"""Builds HTML pages: head, sections, legends, tables."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import InputError
from orchestrator.report.style import SCRIPT, STYLE
from orchestrator.report.svg import colour, dash, esc, mark, polyline, tag


def page(title: str, *inside: str, style: str = "") -> str:
    """Builds a self-contained page. Its content security policy forbids fetching and any script but SCRIPT.

    Args:
        style: style rules of this page besides STYLE.
    """
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(inside)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def write_page(path: Path, content: str) -> None:
    """Writes a page to a file; creates its folder.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    except OSError as error:
        raise InputError(f"The report cannot be written to {path}: {error.strerror}. Name another file.") from None


def section(title: str, *inside: str, note: str = "", is_long: bool = False) -> str:
    """A section of the page; "" if everything inside is empty."""
    if not any(inside):
        return ""
    caption = tag("p", esc(note), class_="soft") if note else ""
    return tag("section", tag("h2", esc(title)), caption, *inside, class_="long" if is_long else "")


def details(name: str, *inside: str) -> str:
    """A part that is folded until clicked."""
    return tag("details", tag("summary", esc(name)), *inside)


def figure(chart: str, *below: str) -> str:
    """A chart that scrolls if the screen is narrow; "" if the chart is empty."""
    return tag("figure", tag("div", chart, class_="scroll"), *below) if chart else ""


def switch(name: str, linear: str, logarithmic: str) -> str:
    """Two figures, one of which is shown; only the linear one if there is no other. Works without scripts."""
    if not logarithmic:
        return linear
    parts = []
    for end, text, checked in (("lin", "linear", " checked"), ("log", "logarithmic", "")):
        parts.append(f'<input type="radio" name="{name}" id="{name}-{end}"{checked}>')
        parts.append(f'<label for="{name}-{end}">{text}</label>')
    return tag(
        "div",
        *parts,
        tag("div", linear, class_="lin"),
        tag("div", logarithmic, class_="log"),
        class_="switch",
    )


def legend(groups: list[str], *, lines: bool, statuses: bool = True) -> str:
    """The legend of groups (shape, colour, dash) and of trial statuses."""
    entries = [(text, colour(n), n) for n, text in enumerate(groups)]
    items = [entry(_swatch(group, lines), css, text) for text, css, group in entries]
    if statuses:
        items.append(entry(_swatch(0, lines), "gl stopped", "stopped early: faint, hollow"))
        failed = '<path d="M13 3l8 8M13 11l8-8" class="curve"/>'
        items.append(entry(failed, "gl failed", "failed"))
        ring = '<path d="M2 7h30" class="curve"/>' if lines else '<circle cx="17" cy="7" r="6" class="ring"/>'
        items.append(entry(ring, "gl best", "the best: thick" if lines else "the best: ringed"))
    return key(*items)


def _swatch(group: int, lines: bool) -> str:
    shape = mark(group, 17, 7, "dot", 4.5)
    return (polyline([(0, 7), (34, 7)], "curve", dash(group)) if lines else "") + shape


def key(*entries: str) -> str:
    """A legend made of `entry`s."""
    return tag("ul", *entries, class_="legend")


def entry(drawn: str, css: str, text: str) -> str:
    """An entry of a legend: a drawing of 34 by 14 pixels and its meaning."""
    picture = f'<svg viewBox="0 0 34 14" aria-hidden="true">{tag("g", drawn, class_=css)}</svg>'
    return tag("li", picture, esc(text))


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Tiles with the most important facts: (value, meaning)."""
    shown = (tag("div", tag("b", esc(fact)), tag("span", esc(what)), class_="fact") for fact, what in facts)
    return tag("div", *shown, class_="facts")


def table(heads: Sequence[str], rows: Sequence[str], numbers: Iterable[int] = (), css: str = "") -> str:
    """A table made of `row`s; `numbers`: columns, counted from 0, that hold numbers."""
    numbers = set(numbers)
    cells = (tag("th", esc(head), scope="col", class_="n" if at in numbers else "") for at, head in enumerate(heads))
    return tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows), class_=css)


def row(*cells: str) -> str:
    """A row made of `cell`s."""
    return tag("tr", *cells)


def cell(text: object, sort_by: object = None, *, number: bool = False, wide: bool = False) -> str:
    """A cell of a table.

    Args:
        sort_by: value to sort by, if not the text.
        wide: the text may take several lines.
    """
    css = "n" if number else "wide" if wide else ""
    return tag("td", esc(text), class_=css, data_v=None if sort_by is None else str(sort_by))
