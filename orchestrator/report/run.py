"""Builds the report of a run: one self-contained HTML page, made from `run_data.ReportData`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.report.curves import Curve, chart, is_wide_range
from orchestrator.report.format import clock, count, duration, is_number, percent
from orchestrator.report.goodput import bars, seconds_of
from orchestrator.report.page import entry, figure, key, page, section, switch, tiles
from orchestrator.report.run_facts import KINDS, PLANNED, RunFacts, Summary
from orchestrator.report.run_tables import (
    all_events,
    attempts,
    checkpoints,
    config,
    data,
    decisions,
    evaluations,
    groups,
    samples,
    versions,
)
from orchestrator.report.series import window
from orchestrator.report.style import RUN_STYLE
from orchestrator.report.svg import NARROW, SMALL, WIDE, Size, esc, mark, polygon, polyline, tag
from orchestrator.report.timeline import life_by_step, life_by_time

LIVE = ("preparing", "running")
"""Statuses of a live run. (`run.record` has them too, but imports numpy, which this page does without.)"""

_SIZES = (("wide-only", WIDE), ("narrow", NARROW))


def html(summary: Summary) -> str:
    """Builds the page. All values are escaped; fields that the summary lacks are omitted."""
    facts = RunFacts(summary)
    parts = [
        _header(facts),
        _tiles(facts),
        _learning(facts),
        _life(facts),
        section(
            "Where the time went",
            bars(summary.get("goodput") or {}, _SIZES),
            note="Every second counts under exactly one cause, from the first command to the last heartbeat.",
        ),
        samples(summary),
        data(summary),
        checkpoints(summary),
        decisions(facts),
        config(summary),
        versions(facts),
    ]
    return page(f"Run {summary.get('run', '')}", *parts, style=RUN_STYLE)


def _header(facts: RunFacts) -> str:
    summary = facts.summary
    status = str(summary.get("status") or "")
    badge = tag("span", esc(status), class_=f"badge {status if status.isalpha() else ''}")
    parts = [tag("h1", "Run ", esc(summary.get("run", "")), badge)]
    if summary.get("message"):
        parts.append(tag("p", esc(summary["message"]), class_="message"))
    if status in LIVE:
        parts.append(tag("p", esc(_live_status(facts))))
    elif not facts.steps:
        parts.append(tag("p", "The run ended before its first checkpoint: there are no curves."))
    elif status != "finished":
        parts.append(tag("p", esc(f"The same command continues it from step {facts.steps[-1]:,}.")))
    times = f"Started {clock(facts.began)}"
    times += f", last heartbeat {clock(facts.ended)}" if status in LIVE else f", ended {clock(facts.ended)}"
    times += f". Stored in {summary.get('url', '')}. Report made {clock(summary.get('made_at'))}."
    return tag("header", *parts, tag("p", esc(times), class_="soft"))


def _live_status(facts: RunFacts) -> str:
    last, phase = facts.lives[-1] if facts.lives else {}, facts.summary.get("phase") or "preparing"
    newest = last.get("step") or 0
    if not newest:
        return f"The run is live, before its first step ({phase}). Make this report again later."
    if not facts.steps:
        return f"The run is live, at step {newest:,} ({phase}). Curves appear with its first checkpoint."
    kept = facts.steps[-1]
    return f"The run is live, at step {newest:,} ({phase}). The report goes up to its newest checkpoint: step {kept:,}"


def _tiles(facts: RunFacts) -> str:
    summary = facts.summary
    loss: Mapping[str, Any] = summary.get("loss") or {}
    shown = [
        (f"{summary.get('step', 0):,}", f"of {summary.get('steps', 0):,} steps; {summary.get('tokens', 0):,} tokens")
    ]
    if is_number(loss.get("val")):
        weights = ", averaged weights" if summary.get("val_weights") == "averaged" else ""
        more = [
            f"{what} {summary[name]:{form}}"
            for name, what, form in (
                ("val_perplexity", "perplexity", ".2f"),
                ("val_bits_per_byte", "bits per byte", ".4f"),
            )
            if is_number(summary.get(name))
        ]
        shown.append((f"{loss['val']:.4f}", f"held-out loss{weights}; " + ", ".join(more)))
    if is_number(loss.get("train")):
        shown.append((f"{loss['train']:.4f}", "training loss of the last step"))
    scores: Mapping[str, Any] = summary.get("translations") or {}
    if is_number(scores.get("bleu")):
        chrf = f"; chrF {scores['chrf']:.2f}" if is_number(scores.get("chrf")) else ""
        shown.append((f"{scores['bleu']:.2f}", f"BLEU over {scores.get('translated')} held-out pairs{chrf}"))
    if is_number(summary.get("tokens_per_s")):
        shown.append((f"{summary['tokens_per_s']:,.0f}", "tokens/s while training"))
    seconds = seconds_of(summary.get("goodput") or {})
    if seconds.get("training"):
        active = sum(each for cause, each in seconds.items() if cause != "idle")
        pauses = f", and {duration(seconds['idle'])} of pauses" if seconds.get("idle") else ""
        shown.append((percent(seconds["training"] / active), f"goodput: training, of {duration(active)}{pauses}"))
    planned = facts.restart_counts.get(PLANNED, 0)
    failed = sum(facts.restart_counts.values()) - planned
    restarts = "restart after a failure" if failed == 1 else "restarts after failures"
    shown.append(
        (f"{failed:,}", f"{restarts}; {count(planned, 'planned resize')}, {count(len(facts.lives), 'attempt')}")
    )
    return tiles(shown)


def _in_sizes(draw: Callable[[Size], str]) -> str:
    """A chart in a size for wide screens and one for phones, one of which is shown."""
    drawn = [(css, draw(size)) for css, size in _SIZES]
    return "".join(tag("div", figure(each), class_=css) for css, each in drawn if each)


def _learning(facts: RunFacts) -> str:
    loss = facts.curve("loss")
    held_out = [(each["step"], each["val_loss"]) for each in facts.evaluations]
    curves = [
        Curve("training loss", loss),
        Curve("held-out loss", held_out, is_rare=True, is_smooth=False),
    ]

    def losses(is_log: bool) -> str:
        name = "loss-log" if is_log else "loss"
        return _in_sizes(lambda size: chart(name, "loss", facts, curves, size, is_log=is_log))

    linear, logarithmic = losses(False), losses(True)
    if not linear:
        return ""
    norm, (speeds, seconds) = Curve("norm", facts.curve("grad_norm")), facts.speed()
    small = [
        chart("lr", "learning rate", facts, [Curve("lr", facts.curve("lr"), is_smooth=False)], SMALL, from_zero=True),
        chart("norm", "gradient norm", facts, [norm], SMALL, is_log=is_wide_range(norm)),
        chart("speed", "tokens/s", facts, [Curve("tokens/s", speeds, seconds)], SMALL, from_zero=True),
    ]
    if bleu := [(each["step"], each["val_bleu"]) for each in facts.evaluations if is_number(each.get("val_bleu"))]:
        curve = Curve("BLEU", bleu, is_rare=True, is_smooth=False)
        small.append(chart("bleu", "BLEU, held out", facts, [curve], SMALL, from_zero=True))
    averaged = " of the averaged weights" if facts.summary.get("val_weights") == "averaged" else ""
    wide = window(len(loss))
    if curves[0].band:
        entries = [entry(polygon([(0, 1), (34, 1), (34, 13), (0, 13)], "band"), "g0", "training loss of single steps")]
    else:
        entries = [entry(polyline([(0, 7), (34, 7)], "raw"), "g0", "training loss of a step")]
    if wide > 1:
        entries.append(entry(polyline([(0, 7), (34, 7)], "curve"), "g0", f"mean of {wide:,} steps"))
    if held_out:
        drawn = polyline([(0, 7), (34, 7)], "curve") + mark(1, 17, 7, "dot", 4.0)
        entries.append(entry(drawn, "g1", f"held-out loss{averaged}"))
    if any(event.number for event in facts.events) or len(facts.attempts_by_step()) > 1:
        dashed = '<path d="M17 0v14" class="rung"/>'
        entries.append(entry(dashed, "", "workers restarted or resized, or a new attempt started"))
    return section(
        "Learning curves",
        switch("loss-axis", linear, logarithmic),
        key(*entries),
        tag("div", *(figure(each) for each in small if each), class_="three"),
        evaluations(facts),
        note="Point at a curve to read its values.",
    )


def _life(facts: RunFacts) -> str:
    charts = [_in_sizes(lambda size: life_by_time(facts, size)), _in_sizes(lambda size: life_by_step(facts, size))]
    if not any(charts):
        return ""
    spent = {span.kind for span in facts.sizes_by_time()}
    signs = []
    if "" in spent:
        signs.append(entry('<rect width="34" height="14" class="area"/>', "g0", "workers that trained"))
    for kind, what in _WITHOUT.items():
        if kind in spent:
            signs.append(entry(f'<rect width="34" height="14" class="without {kind}"/>', "", what))
    signs_of = {
        "restart": '<rect x="6" width="22" height="14" rx="7" class="pill restart"/>',
        "resize": '<rect x="6" width="22" height="14" rx="7" class="pill resize"/>',
        "checkpoint": '<path d="M17 0v14" class="save"/>',
        "evaluation": mark(1, 17, 7, "dot", 4.0),
        "skipped step": '<path d="M12 2l10 10M22 2l-10 10" class="curve"/>',
    }
    meant = {
        "restart": ("", "restart of the workers, with its number in the table"),
        "resize": ("", "planned resize, with its number"),
        "checkpoint": ("g2", "checkpoint"),
        "evaluation": ("g1", "evaluation on the held-out set"),
        "skipped step": ("g6", "step whose data was skipped"),
    }
    there = {event.kind for event in facts.events}
    signs += [entry(signs_of[kind], *meant[kind]) for kind in KINDS if kind in there]
    return section("Workers and events", *charts, key(*signs), groups(facts), attempts(facts), all_events(facts))


_WITHOUT = {
    "startup": "none: an attempt starts",
    "restart": "none: a failure and the restart after it",
    "resize": "none: a restart at another size",
    "pause": "pause between attempts",
}
"""Meaning of the spans without workers, by kind."""
