"""A run as a page to look at: one file of HTML that needs nothing else, made of the run's story alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.report.curves import Curve, chart, is_wide_range
from orchestrator.report.lanes import life_by_step, life_by_time
from orchestrator.report.page import cell, details, entry, figure, key, page, row, section, switch, table, tiles
from orchestrator.report.run_facts import KINDS, RunFacts, Story
from orchestrator.report.run_style import STYLE
from orchestrator.report.seconds import bars, seconds_of
from orchestrator.report.series import window
from orchestrator.report.sizes import NARROW, SMALL, WIDE, Size
from orchestrator.report.svg import esc, mark, polygon, polyline, tag
from orchestrator.report.time_scale import since
from orchestrator.report.words import clock, count, duration, is_number, label, percent

ALIVE = ("preparing", "running")

MOST_ROWS = 300
"""Rows of a table, the newest; `manta show --json` has all."""

_SIZES = (("wide-only", WIDE), ("narrow", NARROW))


def html(story: Story) -> str:
    """The report. Whatever is in the story is shown as text; what it does not have is left out."""
    facts = RunFacts(story)
    parts = [
        _header(facts),
        _tiles(facts),
        _learning(facts),
        _life(facts),
        section(
            "Where the seconds went",
            bars(story.get("goodput") or {}, _SIZES),
            note="Every second of the run under exactly one cause, from the first command to the last sign of life.",
        ),
        _samples(story),
        _data(story),
        _checkpoints(story),
        _decisions(facts),
        _config(story),
        _versions(facts),
    ]
    return page(f"Run {story.get('run', '')}", *parts, style=STYLE)


def _header(facts: RunFacts) -> str:
    story = facts.story
    status = str(story.get("status") or "")
    badge = tag("span", esc(status), class_=f"badge {status if status.isalpha() else ''}")
    parts = [tag("h1", "Run ", esc(story.get("run", "")), badge)]
    if story.get("message"):
        parts.append(tag("p", esc(story["message"]), class_="message"))
    if status in ALIVE:
        parts.append(tag("p", esc(_of_now(facts))))
    elif not facts.rows:
        parts.append(tag("p", "It has ended before the first step that was kept: there are no curves."))
    elif status != "finished":
        parts.append(tag("p", esc(f"The command that began it goes on from step {facts.rows[-1]['step']:,}.")))
    told = f"Started {clock(facts.began)}"
    told += f", last sign of life {clock(facts.ended)}" if status in ALIVE else f", ended {clock(facts.ended)}"
    told += f". Kept in {story.get('url', '')}. Report made {clock(story.get('made_at'))}."
    return tag("header", *parts, tag("p", esc(told), class_="soft"))


def _of_now(facts: RunFacts) -> str:
    last, phase = facts.lives[-1] if facts.lives else {}, facts.story.get("phase") or "preparing"
    newest = last.get("step") or 0
    if not newest:
        return f"The run is alive and at no step yet: {phase}. Make this report again later."
    if not facts.rows:
        return f"The run is alive, at step {newest:,} ({phase}). Its curves begin with its first checkpoint."
    kept = facts.rows[-1]["step"]
    return f"The run is alive, at step {newest:,} ({phase}). What is shown goes to its newest checkpoint: step {kept:,}"


def _tiles(facts: RunFacts) -> str:
    story = facts.story
    loss: Mapping[str, Any] = story.get("loss") or {}
    told = [(f"{story.get('step', 0):,}", f"of {story.get('steps', 0):,} steps; {story.get('tokens', 0):,} tokens")]
    if is_number(loss.get("val")):
        whose = ", averaged weights" if story.get("val_weights") == "averaged" else ""
        more = [
            f"{what} {story[name]:{form}}"
            for name, what, form in (
                ("val_perplexity", "perplexity", ".2f"),
                ("val_bits_per_byte", "bits per byte", ".4f"),
            )
            if is_number(story.get(name))
        ]
        told.append((f"{loss['val']:.4f}", f"held-out loss{whose}; " + ", ".join(more)))
    if is_number(loss.get("train")):
        told.append((f"{loss['train']:.4f}", "training loss of the last step"))
    scores: Mapping[str, Any] = story.get("translations") or {}
    if is_number(scores.get("bleu")):
        chrf = f"; chrF {scores['chrf']:.2f}" if is_number(scores.get("chrf")) else ""
        told.append((f"{scores['bleu']:.2f}", f"BLEU over {scores.get('translated')} held-out pairs{chrf}"))
    if is_number(story.get("tokens_per_s")):
        told.append((f"{story['tokens_per_s']:,.0f}", "tokens/s while training"))
    seconds = seconds_of(story.get("goodput") or {})
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
    averaged = " of the averaged weights" if facts.story.get("val_weights") == "averaged" else ""
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
    rows = [
        row(
            cell(f"{each['step']:,}", each["step"], number=True),
            cell(f"{each['val_loss']:.4f}", number=True),
            cell(f"{each['val_bits_per_byte']:.4f}" if is_number(each.get("val_bits_per_byte")) else "", number=True),
            cell(clock(each.get("at")) if each.get("at") else ""),
        )
        for each in facts.evaluations[-MOST_ROWS:]
    ]
    scores = table(("step", "held-out loss", "bits per byte", "at"), rows, (0, 1, 2))
    return section(
        "Learning curves",
        switch("loss-axis", linear, logarithmic),
        key(*entries),
        tag("div", *(figure(each) for each in small if each), class_="three"),
        details(f"{count(len(rows), 'evaluation')} as a table", tag("div", scores, class_="scroll")) if rows else "",
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
    return section("Workers and events", *charts, key(*signs), _groups(facts), _attempts(facts), _all_events(facts))


_WITHOUT = {
    "startup": "none: an attempt starts",
    "restart": "none: a failure, and the start after it",
    "resize": "none: starting in another size",
    "pause": "pause between attempts",
}
"""What it means where no workers trained."""


def _groups(facts: RunFacts) -> str:
    """The table of restarts and resizes."""
    numbered = list(enumerate(facts.disruptions, 1))[-MOST_ROWS:]
    rows = []
    for number, each in numbered:
        phases: Mapping[str, float] = each.get("phases") or {}
        after = each.get("workers_after")
        told = ", ".join(
            f"{name} {duration(s)}".replace("_", " ").replace(" ", "\u00a0") for name, s in phases.items() if s >= 0.05
        )
        at: Any = each.get("at")
        rows.append(
            row(
                cell(number, number=True),
                cell(since(at - facts.began) if is_number(at) else "", at, number=True),
                cell(f"{each['step']:,}", each["step"], number=True),
                cell("planned resize" if each["cause"] == "resize" else each["cause"]),
                cell(f"{each['workers']} → {'none' if after is None else after}"),
                cell(duration(each.get("detection_s")), each.get("detection_s"), number=True),
                cell(duration(each.get("lost_s")), each.get("lost_s"), number=True),
                cell("" if each.get("replayed_steps") is None else each["replayed_steps"], number=True),
                cell(told, wide=True),
            )
        )
    if not rows:
        return ""
    heads = ("no.", "after", "step", "cause", "workers", "noticed in", "to the next step", "steps again", "restart")
    told = table(heads, rows, (0, 1, 2, 5, 6, 7), "sorted")
    return tag("h3", "Restarts and resizes", _newest(rows, facts.disruptions)) + tag("div", told, class_="scroll")


def _attempts(facts: RunFacts) -> str:
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
    heads = ["no.", "status", "began", "lasted", "steps", "first step after", "host"]
    heads += ["message"] if has_message else []
    told = table(heads, rows, (0, 3, 5))
    return tag("h3", "Attempts", _newest(rows, facts.lives)) + tag("div", told, class_="scroll")


def _all_events(facts: RunFacts) -> str:
    rows = [
        row(
            cell(f"{event.step:,}", event.step, number=True),
            cell("" if event.at is None else since(event.at - facts.began), event.at, number=True),
            cell(event.kind),
            cell(event.told, wide=True),
        )
        for event in facts.events[-MOST_ROWS:]
    ]
    if not rows:
        return ""
    told = table(("step", "after", "event", ""), rows, (0, 1), "sorted")
    name = f"{count(len(facts.events), 'event')} as a table"
    return details(name, tag("p", _newest(rows, facts.events)), tag("div", told, class_="scroll"))


def _newest(rows: Sequence[str], of: Sequence[object]) -> str:
    told = f" the newest {len(rows)} of {len(of):,}; manta show --json has all" if len(rows) < len(of) else ""
    return tag("span", esc(told), class_="soft") if told else ""


def _samples(story: Story) -> str:
    samples: Mapping[str, Any] = story.get("samples") or {}
    if not samples:
        return section("Samples", tag("p", "Nothing to audit before the first checkpoint.", class_="none"))
    right = samples.get("in_order") and not samples.get("duplicated") and not samples.get("missing")
    verdict = "Every sample once and in order." if right else "NOT every sample once and in order."
    facts = [(name.replace("_", " "), value) for name, value in samples.items() if name != "digest"]
    rows = [row(cell(name), cell(f"{v:,}" if is_number(v) else label(v), number=True)) for name, v in facts]
    digest = tag("p", "Digest of all ids in training order: ", tag("code", esc(samples.get("digest", ""))))
    return section(
        "Samples",
        tag("p", tag("b", esc(verdict))),
        tag("div", table(("samples", "number"), rows, (1,), "short"), class_="scroll"),
        digest,
        note="The ids that the ranks really computed, held against the order computed afresh from seed and data.",
    )


def _data(story: Story) -> str:
    parts = []
    if story.get("bad_steps"):
        steps = ", ".join(f"{step:,}" for step in story["bad_steps"])
        parts.append(tag("p", esc(f"Left out: the data of step {steps}, on which the loss went astray.")))
    skipped: Mapping[str, Any] = story.get("skipped_units") or {}
    if skipped.get("count"):
        reasons = (tag("li", esc(reason)) for reason in skipped.get("reasons") or ())
        parts.append(tag("p", esc(f"{skipped['count']:,} bad units were skipped.")) + tag("ul", *reasons))
    if story.get("cleaning"):
        parts.append(tag("ul", *(tag("li", esc(line)) for line in story["cleaning"])))
    return section("Data", *parts)


def _checkpoints(story: Story) -> str:
    kept = story.get("checkpoints") or ()
    if not kept:
        return section("Checkpoints", tag("p", "There is none yet.", class_="none"))
    rows = [
        row(
            cell(f"{each['step']:,}", number=True),
            cell(each["attempt"], number=True),
            tag("td", tag("code", esc(each["url"])), class_="url"),
        )
        for each in reversed(kept)
    ]
    saved = len(story.get("saves") or ())
    note = f"{saved:,} were saved in all; the newest are kept." if saved else ""
    told = tag("div", table(("step", "attempt", "where"), rows, (0, 1)), class_="scroll")
    return section("Checkpoints", told, note=note)


def _decisions(facts: RunFacts) -> str:
    decisions = facts.story.get("decisions") or ()
    rows = [
        row(
            cell(each["attempt"], number=True),
            cell(since(each["at"] - facts.began) if is_number(each.get("at")) else "", each.get("at"), number=True),
            cell(f"{each['step']:,}", each["step"], number=True),
            cell(each["what"], wide=True),
        )
        for each in decisions[-MOST_ROWS:]
    ]
    if not rows:
        return ""
    told = table(("attempt", "after", "step", "what, and why"), rows, (0, 1, 2))
    shown = tag("p", _newest(rows, decisions)) + tag("div", told, class_="scroll")
    return section("What was decided about workers", shown, is_long=True)


def _config(story: Story) -> str:
    fields = story.get("config") or ()
    shown = [
        tag(
            "div",
            tag("dt", tag("code", esc(each["name"]))),
            tag("dd", tag("code", esc(_value(each["value"])))),
            class_="default" if each.get("is_default") else "set",
        )
        for each in fields
    ]
    note = "Fields that decide the result as the run was begun with them, others as now; bold: not the default."
    return section("Config", tag("dl", *shown, class_="fields"), note=note, is_long=True) if shown else ""


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _versions(facts: RunFacts) -> str:
    rows = []
    for life in facts.lives[-MOST_ROWS:]:
        versions: Mapping[str, str] = life.get("versions") or {}
        if versions:
            told = ", ".join(f"{name} {version}" for name, version in versions.items())
            rows.append(row(cell(life["number"], number=True), cell(told, wide=True)))
    if not rows:
        return section("Versions", tag("p", "The run's record does not tell them.", class_="none"))
    return section("Versions", tag("div", table(("attempt", "ran with"), rows, (0,)), class_="scroll"))
