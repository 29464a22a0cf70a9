"""The tables and lists of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.format import clock, count, duration, is_number, label
from orchestrator.report.page import cell, details, row, section, table
from orchestrator.report.run_facts import RunFacts, Summary
from orchestrator.report.svg import esc, tag
from orchestrator.report.time_scale import since

MOST_ROWS = 300
"""Most rows of a table, the newest ones; `manta show --json` has all."""


def groups(facts: RunFacts) -> str:
    """The table of restarts and resizes."""
    rows = []
    for each in facts.disruptions[-MOST_ROWS:]:
        phases: Mapping[str, float] = each.get("phases") or {}
        after = each.get("workers_after")
        restart = ", ".join(
            f"{name} {duration(s)}".replace("_", " ").replace(" ", "\u00a0") for name, s in phases.items() if s >= 0.05
        )
        at: Any = each.get("at")
        rows.append(
            row(
                cell(each["number"], number=True),
                cell(since(at - facts.began) if is_number(at) else "", at, number=True),
                cell(f"{each['step']:,}", each["step"], number=True),
                cell("planned resize" if each["cause"] == "resize" else each["cause"]),
                cell(f"{each['workers']} → {'none' if after is None else after}"),
                cell(duration(each.get("detection_s")), each.get("detection_s"), number=True),
                cell(duration(each.get("lost_s")), each.get("lost_s"), number=True),
                cell("" if each.get("replayed_steps") is None else each["replayed_steps"], number=True),
                cell(restart, wide=True),
            )
        )
    if not rows:
        return ""
    heads = (
        "no.",
        "after",
        "step",
        "cause",
        "workers",
        "detected after",
        "to the next step",
        "steps repeated",
        "restart",
    )
    shown = table(heads, rows, (0, 1, 2, 5, 6, 7), "sorted")
    note = _newest(rows, facts.disruptions, sum(facts.restart_counts.values()))
    return tag("h3", "Restarts and resizes", note) + tag("div", shown, class_="scroll")


def attempts(facts: RunFacts) -> str:
    """The table of attempts."""
    rows, has_message = [], any(life.get("message") for life in facts.lives[-MOST_ROWS:])
    for life in facts.lives[-MOST_ROWS:]:
        first = life.get("from_step")
        rows.append(
            row(
                cell(life["number"], number=True),
                cell(life["status"]),
                cell(clock(life["started_at"])),
                cell(duration(life["ended_at"] - life["started_at"]), number=True),
                cell("" if first is None else f"{first:,} to {life['step']:,}"),
                cell(duration(life.get("first_step_s")), number=True),
                cell(life.get("host", "")),
                cell(life.get("message", ""), wide=True) if has_message else "",
            )
        )
    heads = ["no.", "status", "started", "duration", "steps", "first step after", "host"]
    heads += ["message"] if has_message else []
    shown = table(heads, rows, (0, 3, 5))
    return tag("h3", "Attempts", _newest(rows, facts.lives)) + tag("div", shown, class_="scroll")


def all_events(facts: RunFacts) -> str:
    """The folded table of all events."""
    rows = [
        row(
            cell(f"{event.step:,}", event.step, number=True),
            cell("" if event.at is None else since(event.at - facts.began), event.at, number=True),
            cell(event.kind),
            cell(event.text, wide=True),
        )
        for event in facts.events[-MOST_ROWS:]
    ]
    if not rows:
        return ""
    shown = table(("step", "after", "event", ""), rows, (0, 1), "sorted")
    name = f"{count(len(facts.events), 'event')} as a table"
    return details(name, tag("p", _newest(rows, facts.events)), tag("div", shown, class_="scroll"))


def _newest(rows: Sequence[str], of: Sequence[object], count: int | None = None) -> str:
    """A note where not all are shown.

    Args:
        of: what `manta show --json` has.
        count: number of all that happened; None: those.
    """
    count = len(of) if count is None else count
    has = "all" if count == len(of) else f"{len(of):,}"
    note = f" the newest {len(rows):,} of {count:,}; manta show --json has {has}" if len(rows) < count else ""
    return tag("span", esc(note), class_="soft") if note else ""


def samples(summary: Summary) -> str:
    """The section with the audit of the sample ledger."""
    found: Mapping[str, Any] = summary.get("samples") or {}
    if not found:
        return section("Samples", tag("p", "Nothing to audit before the first checkpoint.", class_="none"))
    if found.keys() == {"expected"}:
        text = f"{found['expected']:,} expected; manta report --audit compares them with those seen."
        return section("Samples", tag("p", esc(text)))
    right = found.get("in_order") and not found.get("duplicated") and not found.get("missing")
    verdict = "Every sample once and in order." if right else "NOT every sample once and in order."
    facts = [(name.replace("_", " "), value) for name, value in found.items() if name != "digest"]
    rows = [row(cell(name), cell(f"{v:,}" if is_number(v) else label(v), number=True)) for name, v in facts]
    digest = tag("p", "Digest of all ids in training order: ", tag("code", esc(found.get("digest", ""))))
    return section(
        "Samples",
        tag("p", tag("b", esc(verdict))),
        tag("div", table(("samples", "number"), rows, (1,), "short"), class_="scroll"),
        digest,
        note="Compares the sample ids that the ranks reported with the order recomputed from seed and data.",
    )


def data(summary: Summary) -> str:
    """The section about skipped data and cleaning."""
    parts = []
    if summary.get("skipped_steps"):
        steps = ", ".join(f"{step:,}" for step in summary["skipped_steps"])
        parts.append(tag("p", esc(f"Skipped: the data of step {steps}, where the loss spiked.")))
    skipped: Mapping[str, Any] = summary.get("skipped_units") or {}
    if skipped.get("count"):
        reasons = (tag("li", esc(reason)) for reason in skipped.get("reasons") or ())
        parts.append(tag("p", esc(f"{skipped['count']:,} unreadable units were skipped.")) + tag("ul", *reasons))
    if summary.get("cleaning"):
        parts.append(tag("ul", *(tag("li", esc(line)) for line in summary["cleaning"])))
    return section("Data", *parts)


_SCORES = {
    "val_loss": ("held-out loss", 4),
    "val_bits_per_byte": ("bits per byte", 4),
    "val_bleu": ("BLEU", 2),
    "val_chrf": ("chrF", 2),
}
"""Scores of an evaluation: the name that is shown, and the number of decimals."""


def evaluations(facts: RunFacts) -> str:
    """The folded table of evaluations."""
    newest = facts.evaluations[-MOST_ROWS:]
    found = [name for name in _SCORES if any(is_number(each.get(name)) for each in newest)]
    rows = [
        row(
            cell(f"{each['step']:,}", each["step"], number=True),
            *(cell(_score(each.get(name), _SCORES[name][1]), number=True) for name in found),
            cell(clock(each["at"]) if each.get("at") else ""),
        )
        for each in newest
    ]
    if not rows:
        return ""
    shown = table(("step", *(_SCORES[name][0] for name in found), "at"), rows, range(1 + len(found)))
    return details(f"{count(len(rows), 'evaluation')} as a table", tag("div", shown, class_="scroll"))


def _score(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if is_number(value) else ""


def checkpoints(summary: Summary) -> str:
    """The section about stored checkpoints, the newest first."""
    kept = summary.get("checkpoints") or ()
    if not kept:
        return section("Checkpoints", tag("p", "No checkpoint yet.", class_="none"))
    rows = [
        row(
            cell(f"{each['step']:,}", number=True),
            cell(each["attempt"], number=True),
            tag("td", tag("code", esc(each["url"])), class_="url"),
        )
        for each in reversed(kept)
    ]
    saved = len(summary.get("saves") or ())
    note = f"{saved:,} were saved; the newest are kept." if saved else ""
    shown = tag("div", table(("step", "attempt", "URL"), rows, (0, 1)), class_="scroll")
    return section("Checkpoints", shown, note=note)


def decisions(facts: RunFacts) -> str:
    """The section about decisions on the number of workers, with their reasons."""
    made = facts.summary.get("decisions") or ()
    rows = [
        row(
            cell(each["attempt"], number=True),
            cell(since(each["at"] - facts.began) if is_number(each.get("at")) else "", each.get("at"), number=True),
            cell(f"{each['step']:,}", each["step"], number=True),
            cell(each["what"], wide=True),
        )
        for each in made[-MOST_ROWS:]
    ]
    if not rows:
        return ""
    shown = table(("attempt", "after", "step", "decision and reason"), rows, (0, 1, 2))
    shown = tag("p", _newest(rows, made)) + tag("div", shown, class_="scroll")
    return section("Decisions about workers", shown, is_long=True)


def config(summary: Summary) -> str:
    """The section with every config field; fields that are not at their default are bold."""
    fields = summary.get("config") or ()
    shown = [
        tag(
            "div",
            tag("dt", tag("code", esc(each["name"]))),
            tag("dd", tag("code", esc(_value(each["value"])))),
            class_="default" if each.get("is_default") else "set",
        )
        for each in fields
    ]
    note = (
        "Fields that decide the result have the values the run is pinned to, others their present ones; bold: changed."
    )
    return section("Config", tag("dl", *shown, class_="fields"), note=note, is_long=True) if shown else ""


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def versions(facts: RunFacts) -> str:
    """The section with the versions that each attempt ran with."""
    rows = []
    for life in facts.lives[-MOST_ROWS:]:
        found: Mapping[str, str] = life.get("versions") or {}
        if found:
            packages = ", ".join(f"{name} {version}" for name, version in found.items())
            rows.append(row(cell(life["number"], number=True), cell(packages, wide=True)))
    if not rows:
        return section("Versions", tag("p", "The run's record does not have them.", class_="none"))
    return section("Versions", tag("div", table(("attempt", "versions"), rows, (0,)), class_="scroll"))
