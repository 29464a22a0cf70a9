"""A sweep as a table on the terminal: while it runs, and for `manta show`."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from orchestrator.report.format import duration, is_number, label
from orchestrator.sweep.report.facts import Facts, Summary, Trial, config_text, read

MOST_ROWS = 20
"""Trials shown one by one; of the others only how many there are."""

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "dim", "pending": "dim"}

_ORDER = ("running", "finished", "stopped", "failed", "pending")
"""While it runs; the best trial is before all of them."""


def live_table(summary: Summary, most_rows: int = MOST_ROWS) -> Table:
    """The trials, for a terminal of 100 columns: the best, then those that run, and so on."""
    facts = read(summary, curves=False)
    table = Table(title=Text(_title(summary, facts)), title_justify="left", caption_justify="left", width=100)
    table.add_column("trial", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("status", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("config, or what became of it", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("workers", justify="right", no_wrap=True)
    table.add_column("their time", justify="right", no_wrap=True)
    trials = sorted(facts.trials, key=lambda trial: (not trial.is_best, _rank(trial)))  # by loss within: it is stable
    for trial in trials[:most_rows]:
        table.add_row(*_row(trial, facts), style="bold" if trial.is_best else _STYLES.get(trial.status, ""))
    table.caption = Text(_caption(summary, trials[most_rows:]))
    return table


def print_sweep(summary: Summary, console: Console) -> None:
    """The sweep as `manta show` tells it: what it is, what came of it and at what cost, and all trials."""
    facts = read(summary, curves=False)
    table = Table(title=Text(f"sweep {_flat(summary.get('sweep', ''))}"), show_header=False, title_justify="left")
    for name, told in _facts(summary, facts):
        table.add_row(name, Text(told))
    console.print(Group(table, live_table(summary, most_rows=max(MOST_ROWS, len(facts.trials)))))


def _facts(summary: Summary, facts: Facts) -> list[tuple[str, str]]:
    message = _flat(summary.get("message") or "")
    told = [("status", f"{summary.get('status')}{': ' + message if message else ''}")]
    told.append(
        ("search", f"{_flat(summary.get('searcher'))}, {_flat(summary.get('scheduler'))}, by {summary.get('metric')}")
    )
    counts = ", ".join(f"{count} {status}" for status, count in facts.counts().items())
    told.append(
        ("trials", f"{len(facts.trials)}{': ' + counts if counts else ''}; {summary.get('attempts', 1)} attempt(s)")
    )
    best = summary.get("best")
    if best:
        loss = f"{best['loss']:.4f}" if is_number(best.get("loss")) else "no loss"
        config = config_text(facts.best, facts.fields) if facts.best else ""
        told.append(("best", f"{loss}, trial {_flat(best['id'])}, run {_flat(best['run'])}\n{_flat(config)}"))
        told += [("recipe", _flat(best["recipe"]))] if best.get("recipe") else []
    cost = summary.get("cost") or {}
    if cost:
        steps = f"{cost['steps']:,} of {cost['steps_of_all']:,} steps, {cost['share']:.0%} of all trials to the end"
        told.append(("cost", f"{steps}; {duration(cost['worker_s'])} of workers' time"))
    for rung in summary.get("rungs") or ():
        what = f"{rung['trials']} came, {rung['stopped']} stopped; {duration(float(rung['worker_s']))} of workers' time"
        told.append((f"rung {rung['step']}", what))
    tokens = summary.get("tokenized") or {}
    if tokens.get("units"):
        there = f"{tokens['cached']} were there already"
        told.append(("tokens", f"{tokens['tokenized']} of {tokens['units']} units tokenized by this sweep; {there}"))
    return told


def _title(summary: Summary, facts: Facts) -> str:
    best = facts.best
    told = f"sweep {_flat(summary.get('sweep', ''))}: {summary.get('status')}, {len(facts.trials)} trials"
    return told if best is None or best.loss is None else f"{told}, best {best.loss:.4f} by {best.id}"


def _caption(summary: Summary, left_out: list[Trial]) -> str:
    told = []
    if left_out:
        counts = {trial.status: sum(t.status == trial.status for t in left_out) for trial in left_out}
        told.append(f"and {len(left_out)} more: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    cost = summary.get("cost") or {}
    if cost.get("steps_of_all"):
        told.append(
            f"{cost['share']:.0%} of the steps of all trials to the end; {duration(cost['worker_s'])} of workers"
        )
    return "; ".join(told)


def _row(trial: Trial, facts: Facts) -> list[Text]:
    config = " ".join(
        label(f.of(trial)) if f is facts.main else f"{f.short}={label(f.of(trial))}"
        for f in sorted(facts.fields, key=lambda f: f is not facts.main)
        if f.name in trial.config
    )
    # What went wrong is worth more room than with what: the page and the JSON have both.
    about = trial.reason if trial.status == "failed" and trial.reason else config
    cells = [
        trial.id + (" *" if trial.is_best else ""),
        trial.status,
        f"{trial.step}/{trial.steps}",
        "" if trial.loss is None else f"{trial.loss:.4f}",
        about,
        str(trial.workers) if trial.status == "running" else "",
        duration(trial.worker_s),
    ]
    return [Text(_flat(cell)) for cell in cells]


def _rank(trial: Trial) -> int:
    return _ORDER.index(trial.status) if trial.status in _ORDER else len(_ORDER)


def _flat(text: object) -> str:
    """Text in one line, without what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in str(text))
