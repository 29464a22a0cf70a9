"""A run as a page to look at: one file of HTML that needs nothing else, made of the run's summary alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.report.curves import Curve, chart, is_wide_range
from orchestrator.report.format import clock, count, duration, is_number, percent
from orchestrator.report.goodput import bars, seconds_of
from orchestrator.report.page import entry, figure, key, page, section, switch, tiles
from orchestrator.report.run_facts import KINDS, RunFacts, Summary
from orchestrator.report.run_style import STYLE
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
from orchestrator.report.svg import NARROW, SMALL, WIDE, Size, esc, mark, polygon, polyline, tag
from orchestrator.report.timeline import life_by_step, life_by_time

ALIVE = ("preparing", "running")

_SIZES = (("wide-only", WIDE), ("narrow", NARROW))


def html(summary: Summary) -> str:
    """The report. Whatever is in the summary is shown as text; what it does not have is left out."""
    facts = RunFacts(summary)
    parts = [
        _header(facts),
        _tiles(facts),
        _learning(facts),
        _life(facts),
        section(
            "Where the seconds went",
            bars(summary.get("goodput") or {}, _SIZES),
            note="Every second of the run under exactly one cause, from the first command to the last sign of life.",
        ),
        samples(summary),
        data(summary),
        checkpoints(summary),
        decisions(facts),
        config(summary),
        versions(facts),
    ]
    return page(f"Run {summary.get('run', '')}", *parts, style=STYLE)


def _header(facts: RunFacts) -> str:
    summary = facts.summary
    status = str(summary.get("status") or "")
    badge = tag("span", esc(status), class_=f"badge {status if status.isalpha() else ''}")
    parts = [tag("h1", "Run ", esc(summary.get("run", "")), badge)]
    if summary.get("message"):
        parts.append(tag("p", esc(summary["message"]), class_="message"))
    if status in ALIVE:
        parts.append(tag("p", esc(_of_now(facts))))
    elif not facts.rows:
        parts.append(tag("p", "It has ended before the first step that was kept: there are no curves."))
    elif status != "finished":
        parts.append(tag("p", esc(f"The command that began it goes on from step {facts.rows[-1]['step']:,}.")))
    told = f"Started {clock(facts.began)}"
    told += f", last sign of life {clock(facts.ended)}" if status in ALIVE else f", ended {clock(facts.ended)}"
    told += f". Kept in {summary.get('url', '')}. Report made {clock(summary.get('made_at'))}."
    return tag("header", *parts, tag("p", esc(told), class_="soft"))


def _of_now(facts: RunFacts) -> str:
    last, phase = facts.lives[-1] if facts.lives else {}, facts.summary.get("phase") or "preparing"
    newest = last.get("step") or 0
    if not newest:
        return f"The run is alive and at no step yet: {phase}. Make this report again later."
    if not facts.rows:
        return f"The run is alive, at step {newest:,} ({phase}). Its curves begin with its first checkpoint."
    kept = facts.rows[-1]["step"]
    return f"The run is alive, at step {newest:,} ({phase}). What is shown goes to its newest checkpoint: step {kept:,}"


def _tiles(facts: RunFacts) -> str:
    summary = facts.summary
    loss: Mapping[str, Any] = summary.get("loss") or {}
    told = [
        (f"{summary.get('step', 0):,}", f"of {summary.get('steps', 0):,} steps; {summary.get('tokens', 0):,} tokens")
    ]
    if is_number(loss.get("val")):
        whose = ", averaged weights" if summary.get("val_weights") == "averaged" else ""
        more = [
            f"{what} {summary[name]:{form}}"
            for name, what, form in (
                ("val_perplexity", "perplexity", ".2f"),
                ("val_bits_per_byte", "bits per byte", ".4f"),
            )
            if is_number(summary.get(name))
        ]
        told.append((f"{loss['val']:.4f}", f"held-out loss{whose}; " + ", ".join(more)))
    if is_number(loss.get("train")):
        told.append((f"{loss['train']:.4f}", "training loss of the last step"))
    scores: Mapping[str, Any] = summary.get("translations") or {}
    if is_number(scores.get("bleu")):
        chrf = f"; chrF {scores['chrf']:.2f}" if is_number(scores.get("chrf")) else ""
        told.append((f"{scores['bleu']:.2f}", f"BLEU over {scores.get('translated')} held-out pairs{chrf}"))
    if is_number(summary.get("tokens_per_s")):
        told.append((f"{summary['tokens_per_s']:,.0f}", "tokens/s while training"))
    seconds = seconds_of(summary.get("goodput") or {})
    if seconds.get("training"):
        active = sum(each for cause, each in seconds.items() if cause != "idle")
        pauses = f", and {duration(seconds['idle'])} of pauses" if seconds.get("idle") else ""
        told.append((percent(seconds["training"] / active), f"goodput: training, of {duration(active)}{pauses}"))
    planned = sum(event.kind == "resize" for event in facts.events)
    failed = sum(event.kind == "restart" for event in facts.events)
    restarts = "restart after a failure" if failed == 1 else "restarts after failures"
    told.append(
        (f"{failed:,}", f"{restarts}; {count(planned, 'planned resize')}, {count(len(facts.lives), 'attempt')}")
    )
    return tiles(told)


def _in_sizes(draw: Callable[[Size], str]) -> str:
    """A chart for wide screens and one for phones, of which one is shown."""
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
    if any(event.number for event in facts.events) or len(facts.lives_by_step()) > 1:
        dashed = '<path d="M17 0v14" class="rung"/>'
        entries.append(entry(dashed, "", "workers restarted or resized, or another attempt went on"))
    return section(
        "Learning curves",
        switch("loss-axis", linear, logarithmic),
        key(*entries),
        tag("div", *(figure(each) for each in small if each), class_="three"),
        evaluations(facts),
        note="Point at a place of a curve to read it.",
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
        "left out": '<path d="M12 2l10 10M22 2l-10 10" class="curve"/>',
    }
    meant = {
        "restart": ("", "workers ended and started again, by number in the table"),
        "resize": ("", "planned change of workers, by number"),
        "checkpoint": ("g2", "checkpoint"),
        "evaluation": ("g1", "evaluation on the held-out set"),
        "left out": ("g6", "step whose data is left out"),
    }
    there = {event.kind for event in facts.events}
    signs += [entry(signs_of[kind], *meant[kind]) for kind in KINDS if kind in there]
    return section("Workers and events", *charts, key(*signs), groups(facts), attempts(facts), all_events(facts))


_WITHOUT = {
    "startup": "none: an attempt starts",
    "restart": "none: a failure, and the start after it",
    "resize": "none: starting in another size",
    "pause": "pause between attempts",
}
"""What it means where no workers trained."""
