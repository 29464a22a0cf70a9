"""The report of a sweep: one HTML file that loads nothing else, built from the sweep's summary."""

from __future__ import annotations

from typing import Any

from orchestrator.report.format import clock, duration, is_number, label
from orchestrator.report.page import cell, figure, legend, page, row, section, switch, table, tiles
from orchestrator.report.svg import esc, tag
from orchestrator.sweep.report.facts import Facts, Summary, Trial, config_text, read
from orchestrator.sweep.report.importance import LIMITS, METHOD, MIN_POINTS, importance
from orchestrator.sweep.report.parallel import ancestry, parallel
from orchestrator.sweep.report.pareto import Front, front_chart, fronts
from orchestrator.sweep.report.plots import bars, best_curve, best_so_far, curves, scatter, timeline

SIGNS = {"finished": "●", "running": "▶", "paused": "‖", "pending": "…", "stopped": "○", "failed": "✕"}
"""Sign of each status, so that it can be read without its colour."""


def html(summary: Summary) -> str:
    """Builds the report. Values are escaped; sections without data are left out."""
    facts, metric = read(summary), str(summary.get("metric") or "loss")
    lines, pareto = parallel(facts, metric), fronts(facts)
    began = summary.get("started_at")
    groups = [f"{facts.main.short} {label(value)}" for value in facts.main.values] if facts.main else []
    parts = [
        _header(summary, facts),
        _tiles(summary, facts),
        _winner(summary, facts, metric),
        section(
            "All learning curves",
            switch("curve-axis", figure(curves(facts, metric, False)), figure(curves(facts, metric, True))),
            legend(groups, lines=True) if facts.trials else "",
            note=f"{_seen(summary)} Point at a curve to find its trial everywhere.",
        )
        if any(trial.curve for trial in facts.trials)
        else "",
        _against(facts, metric, groups),
        section(
            "Every trial over all fields",
            figure(lines, legend(groups, lines=True)) if lines else "",
            note="One line per trial; it is broken at a field that the trial does not use.",
        ),
        _pareto(facts, pareto, metric, groups),
        _mattered(facts),
        _rungs(summary, facts, began),
        section(
            "Trials that continued from another trial's state",
            figure(ancestry(facts)),
            note="An arrow points from the donor to the trial that continued from its state, at that step.",
        ),
        _trials(facts, {trial.id for front in pareto for trial in front.best}),
    ]
    return page(f"Sweep {summary.get('sweep', '')}", *parts)


def _header(summary: Summary, facts: Facts) -> str:
    status = str(summary.get("status") or "")
    badge = tag("span", esc(status), class_=f"badge {status if status.isalpha() else ''}")
    counts = ", ".join(f"{count} {status}" for status, count in facts.counts().items())
    text = f"{len(facts.trials)} trials{': ' + counts if counts else ''}. "
    text += f"Searcher {summary.get('searcher')}, scheduler {summary.get('scheduler')}, by {summary.get('metric')}."
    when = [f"Started {clock(summary.get('started_at'))}"]
    when += [f"ended {clock(summary.get('ended_at'))}"] if summary.get("ended_at") else []
    attempts = summary.get("attempts") or 1
    when += [f"in {attempts} attempts"] if attempts > 1 else []
    message = tag("p", esc(summary["message"])) if summary.get("message") else ""
    parts = tag("h1", "Sweep ", esc(summary.get("sweep", "")), badge), tag("p", esc(text)), message
    return tag("header", *parts, tag("p", esc(", ".join(when) + "."), class_="soft"))


def _tiles(summary: Summary, facts: Facts) -> str:
    cost: dict[str, Any] = summary.get("cost") or {}
    tokens: dict[str, Any] = summary.get("tokenized") or {}
    best = summary.get("best") or {}
    began, ended = summary.get("started_at"), summary.get("ended_at")
    shown = []
    if is_number(best.get("loss")):
        shown.append((f"{best['loss']:.4f}", f"best {summary.get('metric')}, trial {best.get('id')}"))
    if cost.get("steps_of_all"):
        spent = f"{cost['steps']:,} of the {cost['steps_of_all']:,} steps of running all trials to the end"
        shown.append((f"{cost['share']:.0%}", f"of the full cost: {spent}"))
    shown.append((duration(float(cost.get("worker_s") or 0.0)), "worker time"))
    if began is not None and ended is not None:
        shown.append((duration(ended - began), "from start to end"))
    if tokens.get("units"):
        times = "each once" if tokens["tokenized"] + tokens["cached"] == tokens["units"] else "NOT each once"
        text = f"units tokenized by this sweep, {times}; {tokens['cached']} were cached before"
        shown.append((f"{tokens['tokenized']} of {tokens['units']}", text))
    return tiles(shown)


def _winner(summary: Summary, facts: Facts, metric: str) -> str:
    best = summary.get("best")
    if not best:
        return section("Best curve", tag("p", "No trial has reported a loss yet.", class_="none"))
    trial = facts.best
    fields = facts.fields
    text = config_text(trial, fields) if trial else "  ".join(f"{k}={label(v)}" for k, v in best["config"].items())
    parts = [
        tag(
            "p",
            "Trial ",
            tag("b", esc(best["id"])),
            ", run ",
            tag("code", esc(best["run"])),
            ": ",
            tag("code", esc(text)),
        )
    ]
    if best.get("recipe"):
        train = f"manta train {best['recipe']}"
        parts.append(
            tag(
                "p",
                "Its recipe: ",
                tag("code", esc(best["recipe"])),
                ". To train it: ",
                tag("code", esc(train)),
            )
        )
    charts = [figure(best_curve(facts, metric)), figure(best_so_far(facts, metric, summary.get("started_at")))]
    return section("Best curve", *parts, tag("div", *charts, class_="two") if any(charts) else "")


def _against(facts: Facts, metric: str, groups: list[str]) -> str:
    numeric = [field for field in facts.fields if field.is_numeric]
    # Fields that every trial uses come first.
    numeric.sort(key=lambda field: (bool(field.when), facts.fields.index(field)))
    charts = [(field, scatter(facts, field, metric, number)) for number, field in enumerate(numeric)]
    shown = [figure(chart) for _, chart in charts if chart]
    if not shown:
        return ""
    by = f" by {facts.main.short}" if facts.main else ""
    first, others = shown[0], shown[1:]
    return section(
        f"Loss against each number{by}",
        first,
        tag("div", *others, class_="two") if others else "",
        legend(groups, lines=False),
        note="The loss of each trial at its last step, which is an earlier step for a stopped trial.",
    )


def _pareto(facts: Facts, pareto: list[Front], metric: str, groups: list[str]) -> str:
    charts = [figure(front_chart(facts, front, metric)) for front in pareto]
    told = [tag("p", tag("b", esc(front.cost.name), ": "), esc(front.text)) for front in pareto]
    return section(
        "Loss against cost",
        tag("div", *charts, class_="two") if charts else "",
        legend(groups, lines=False) if charts else "",
        *told,
        note="The points that were trained furthest, by the means of their trials. No other beats those with a "
        "ring (◆ in the table) in both; the sweep itself selects by loss alone.",
    )


def _mattered(facts: Facts) -> str:
    found = importance(facts)
    if found.step is None or found.points < MIN_POINTS:
        few = f"{found.points} points have finished or were stopped; at least {MIN_POINTS} are needed."
        return section("Importance of fields", tag("p", esc(few), class_="none")) if facts.fields else ""
    left = f" {found.failed} failed points are left out." if found.failed else ""
    compared = f"{found.points} points compared at step {found.step}.{left}"
    return section(
        "Importance of fields",
        figure(bars(found)),
        tag("p", tag("b", "How: "), esc(METHOD), class_="soft"),
        tag("p", tag("b", "Limits: "), esc(LIMITS), class_="soft"),
        note=compared,
    )


def _seen(summary: Summary) -> str:
    """Which data the trials saw, as far as it can be compared."""
    if "train.global_batch_size" in (summary.get("space") or {}):
        return "By the same step, trials with another train.global_batch_size have seen another amount of text."
    return "Every trial saw the same batches in the same order."


def _rungs(summary: Summary, facts: Facts, began: float | None) -> str:
    rungs = summary.get("rungs") or []
    total = sum(float(rung["worker_s"]) for rung in rungs) or 1.0
    rows, before = [], 0
    for rung in rungs:
        share = float(rung["worker_s"]) / total
        bar = '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" style="width:160px;height:12px">'
        bar += '<rect width="100" height="10" class="track"/>'
        bar += f'<rect width="{100 * share:.1f}" height="10" class="bar"/></svg>'
        rows.append(
            row(
                cell(f"{before} to {rung['step']}", rung["step"]),
                cell(rung["trials"], number=True),
                cell(rung["stopped"], number=True),
                cell(duration(float(rung["worker_s"])), rung["worker_s"], number=True),
                cell(f"{share:.0%}", share, number=True),
                tag("td", bar),
            )
        )
        before = rung["step"]
    heads = ("steps", "trials", "stopped", "worker time", "share", "")
    costs = tag("div", table(heads, rows, numbers=(1, 2, 3, 4)), class_="scroll") if rows else ""
    return section(
        "Time and cost", costs, figure(timeline(facts, began)), note="Worker time by rung, and when each trial ran."
    )


def _trials(facts: Facts, unbeaten: set[str]) -> str:
    names = [f.short for f in facts.fields]
    heads = [
        "trial",
        "status",
        "loss",
        "step",
        *names,
        "reason",
        "continued from",
        "workers",
        "parameters",
        "worker time",
        "start-up",
    ]
    heads.append("run")
    numbers = [
        2,
        3,
        *(4 + n for n, f in enumerate(facts.fields) if f.is_numeric),
        *range(len(heads) - 5, len(heads) - 1),
    ]
    rows = [_trial_row(trial, facts, trial.id in unbeaten) for trial in facts.trials]
    if not rows:
        return section("All trials", tag("p", "There are no trials yet.", class_="none"))
    return section("All trials", tag("div", table(heads, rows, numbers, "sorted"), class_="scroll"), is_long=True)


def _trial_row(trial: Trial, facts: Facts, is_unbeaten: bool) -> str:
    cells = [
        cell(trial.id + (" ★ best" if trial.is_best else "") + (" ◆" if is_unbeaten else ""), trial.id),
        cell(f"{SIGNS.get(trial.status, '?')} {trial.status}", trial.status),
        cell("" if trial.loss is None else f"{trial.loss:.4f}", trial.loss, number=True),
        cell(f"{trial.step} of {trial.steps}", trial.step, number=True),
    ]
    for field in facts.fields:
        value = field.of(trial)
        text = tag("span", "-", class_="none", title="not used by this trial") if value is None else esc(label(value))
        sort_by = value if is_number(value) else None
        cells.append(
            tag(
                "td",
                text,
                class_="n" if field.is_numeric else "",
                data_v=repr(sort_by) if sort_by is not None else None,
            )
        )
    cells += [
        tag("td", esc(trial.reason), class_="wide" if trial.reason else ""),
        cell(f"{trial.donor[0]} at step {trial.donor[1]}" if trial.donor else ""),
        cell(trial.workers, number=True),
        cell("" if trial.parameters is None else label(trial.parameters), trial.parameters, number=True),
        cell(duration(trial.worker_s), trial.worker_s, number=True),
        cell(duration(trial.first_step_s), trial.first_step_s, number=True),
        cell(trial.run),
    ]
    return tag("tr", *cells, class_="best" if trial.is_best else "", data_trial=trial.id)
