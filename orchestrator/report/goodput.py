"""Draws the goodput ledger: bars with a part for every cause, and a table of the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from orchestrator.report.format import duration, percent
from orchestrator.report.page import cell, entry, figure, key, row, table
from orchestrator.report.svg import Size, esc, svg, tag, text_at
from orchestrator.run.goodput import CAUSES

REST = "not accounted for"
"""Wall time beyond the sum of all causes, if it is more than rounding."""

MEANINGS = {
    "training": "forward, backward, all-reduce, update",
    "data_wait": "the loop waited for micro-batches",
    "compile": "first step of a compiled model",
    "snapshot": "state copied into the node's memory",
    "checkpoint": "the loop waited for object storage",
    "store_wait": "training stood still because a store failed",
    "evaluation": "training waited for an evaluation",
    "startup": "from the command to the loop",
    "detection": "from a failure to its detection",
    "restart": "from the detection to the restarted loop",
    "replay": "steps repeated because a failure lost them",
    "shutdown": "from the end of the loop to the end of the command",
    "idle": "between two attempts",
    REST: "the rest of wall time",
}

BAR = 40.0
"""Height of a bar in pixels."""

ROUNDING = 0.001
"""Share of wall time up to which the rest is rounding."""


def seconds_of(goodput: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every cause with more than zero, in the ledger's order, with REST so that they add up to wall time.

    Args:
        goodput: `goodput` of a run's summary: `training_s` and so on, and `wall_s`.
    """
    seconds = {cause: float(goodput.get(f"{cause}_s") or 0.0) for cause in CAUSES}
    wall = float(goodput.get("wall_s") or 0.0)
    rest = wall - sum(seconds.values())
    seconds[REST] = rest if rest > ROUNDING * wall else 0.0
    return {cause: each for cause, each in seconds.items() if each > 0}


def bar(name: str, title: str, seconds: Mapping[str, float], size: Size) -> str:
    """Draws seconds as parts of one bar; "" if there are none."""
    total = sum(seconds.values())
    if not total > 0:
        return ""
    # Round edges, not widths, so that the parts fill the bar exactly.
    edges = [0.0, *(round(size.width * until / total, 1) for until in accumulate(seconds.values()))]
    drawn = []
    for (cause, each), start, end in zip(seconds.items(), edges, [*edges[1:], size.width], strict=False):
        tip = f"{cause.replace('_', ' ')}: {duration(each)}, {percent(each / total)}"
        box = tag("rect", x=start, y=0.0, width=end - start, height=BAR, class_=f"cause {css(cause)}")
        name_of = cause.replace("_", " ")
        fits = [text for text in (f"{name_of} {percent(each / total)}", name_of) if end - start > 10 + 6.6 * len(text)]
        text = text_at((start + end) / 2, BAR / 2 + 4, fits[0], "on mid") if fits else ""
        drawn.append(tag("g", tag("title", esc(tip)), box, text, class_="mark"))
    shares = ", ".join(f"{cause.replace('_', ' ')} {percent(each / total)}" for cause, each in seconds.items())
    return svg(f"{name}-{size.name}", title, f"{duration(total)}: {shares}.", size.width, BAR, *drawn)


def bars(goodput: Mapping[str, float], sizes: Sequence[tuple[str, Size]]) -> str:
    """Draws a bar of all seconds, a bar without training and pauses, a legend and a table.

    Args:
        sizes: (style class that shows the chart if it fits the screen, size).
    """
    seconds = seconds_of(goodput)
    if not seconds:
        return ""
    rest = {cause: each for cause, each in seconds.items() if cause not in ("training", "idle")}
    drawn = []
    for css_class, size in sizes:
        whole = bar("seconds", "All seconds by cause", seconds, size)
        other = ""
        if rest != seconds:
            other = bar("overhead", "Seconds by cause without training and pauses", rest, size)
        parts = [tag("p", esc(f"All: {duration(sum(seconds.values()))}"), class_="bar-name"), figure(whole)]
        if other:
            named = f"All but training and pauses, enlarged: {duration(sum(rest.values()))}"
            parts += [tag("p", esc(named), class_="bar-name"), figure(other)]
        drawn.append(tag("div", *parts, class_=css_class))
    total = sum(seconds.values())
    rows, legend = [], []
    for cause, each in seconds.items():
        name = cause.replace("_", " ")
        square = f'<rect x="8" width="14" height="14" rx="3" class="cause {css(cause)}"/>'
        legend.append(entry(square, "", f"{name} {duration(each)} ({percent(each / total)})"))
        rows.append(
            row(
                cell(name),
                cell(f"{each:,.1f}", each, number=True),
                cell(percent(each / total), each, number=True),
                cell(MEANINGS[cause], wide=True),
            )
        )
    rows.append(
        row(
            cell("wall"),
            cell(f"{total:,.1f}", total, number=True),
            cell("100 %", total, number=True),
            cell("their sum"),
        )
    )
    numbers = table(("cause", "seconds", "share", "meaning"), rows, (1, 2))
    return "".join([*drawn, key(*legend), tag("div", numbers, class_="scroll")])


def css(cause: str) -> str:
    """Style class with the colour of a cause."""
    return "c-rest" if cause == REST else f"c-{cause.replace('_', '-')}"
