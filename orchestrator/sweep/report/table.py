"""Tables of a sweep for the terminal: the live table while it runs, and `manta show`."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from orchestrator.console import Terminal
from orchestrator.report.format import duration, is_number, label
from orchestrator.sweep.report.facts import Facts, Summary, Trial, config_text, read
from orchestrator.sweep.report.importance import importance
from orchestrator.sweep.report.pareto import fronts

MAX_ROWS = 20
"""Maximum number of trials in the live table; the others are only counted."""

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "dim", "paused": "", "pending": "dim"}

_ORDER = ("running", "finished", "paused", "stopped", "failed", "pending")
"""Order of statuses in the live table, after the best trial."""


def live_table(summary: Summary, max_rows: int = MAX_ROWS) -> Table:
    """The table of trials for a terminal of 100 columns: the best, then running ones, then the others."""
    facts = read(summary, curves=False)
    table = Table(title=_title(summary, facts), title_justify="left", caption_justify="left", width=100)
    table.add_column("trial", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("status", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("config, or reason of failure", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("workers", justify="right", no_wrap=True)
    table.add_column("worker time", justify="right", no_wrap=True)
    trials = sorted(
        facts.trials, key=lambda trial: (not trial.is_best, _rank(trial))
    )  # within a status by loss, as the sort is stable
    for trial in trials[:max_rows]:
        table.add_row(*_row(trial, facts), style="bold" if trial.is_best else _STYLES.get(trial.status, ""))
    table.caption = _caption(summary, trials[max_rows:])
    return table


def print_sweep(summary: Summary, console: Terminal) -> None:
    """Prints a sweep for `manta show`: its facts, cost and best trial, and the table of all trials."""
    facts = read(summary)
    table = Table(title=f"sweep {_flat(summary.get('sweep', ''))}", show_header=False, title_justify="left")
    for name, text in _facts(summary, facts):
        table.add_row(name, text)
    console.print(Group(table, live_table(summary, max_rows=max(MAX_ROWS, len(facts.trials)))))


def spread_text(deviation: float | None) -> str:
    """What follows the mean loss of a point that was trained with several seeds; "" for one seed."""
    return "" if deviation is None else f" ± {deviation:.4f} over its seeds"


def _facts(summary: Summary, facts: Facts) -> list[tuple[str, str]]:
    message = _flat(summary.get("message") or "")
    rows = [("status", f"{summary.get('status')}{': ' + message if message else ''}")]
    rows.append(
        ("search", f"{_flat(summary.get('searcher'))}, {_flat(summary.get('scheduler'))}, by {summary.get('metric')}")
    )
    counts = ", ".join(f"{count} {status}" for status, count in facts.counts().items())
    rows.append(
        ("trials", f"{len(facts.trials)}{': ' + counts if counts else ''}; {summary.get('attempts', 1)} attempt(s)")
    )
    best = summary.get("best")
    if best:
        loss = f"{best['loss']:.4f}{spread_text(best.get('deviation'))}" if is_number(best.get("loss")) else "no loss"
        config = config_text(facts.best, facts.fields) if facts.best else ""
        rows.append(("best", f"{loss}, trial {_flat(best['id'])}, run {_flat(best['run'])}\n{_flat(config)}"))
        rows += [("recipe", _flat(best["recipe"]))] if best.get("recipe") else []
    cost = summary.get("cost") or {}
    if cost:
        steps = f"{cost['steps']:,} of {cost['steps_of_all']:,} steps, {cost['share']:.0%} of all trials to the end"
        rows.append(("cost", f"{steps}; {duration(cost['worker_s'])} of worker time"))
    for rung in summary.get("rungs") or ():
        what = f"{rung['trials']} trials, {rung['stopped']} stopped; {duration(float(rung['worker_s']))} of worker time"
        rows.append((f"rung {rung['step']}", what))
    told = importance(facts).text
    rows += [("importance", _flat(told))] if told else []
    rows += [(f"loss and {front.cost.name}", f"unbeaten: {_flat(front.text)}") for front in fronts(facts)]
    tokens = summary.get("tokenized") or {}
    if tokens.get("units"):
        cached = f"{tokens['cached']} were cached before"
        rows.append(("tokens", f"{tokens['tokenized']} of {tokens['units']} units tokenized by this sweep; {cached}"))
    return rows


def _title(summary: Summary, facts: Facts) -> str:
    best = facts.best
    title = f"sweep {_flat(summary.get('sweep', ''))}: {summary.get('status')}, {len(facts.trials)} trials"
    return title if best is None or best.loss is None else f"{title}, best {best.loss:.4f} by {best.id}"


def _caption(summary: Summary, hidden: list[Trial]) -> str:
    parts = []
    if hidden:
        counts = {trial.status: sum(t.status == trial.status for t in hidden) for trial in hidden}
        parts.append(f"and {len(hidden)} more: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    cost = summary.get("cost") or {}
    if cost.get("steps_of_all"):
        parts.append(
            f"{cost['share']:.0%} of the steps of all trials to the end; {duration(cost['worker_s'])} of worker time"
        )
    return "; ".join(parts)


def _row(trial: Trial, facts: Facts) -> list[str]:
    config = " ".join(
        label(f.of(trial)) if f is facts.main else f"{f.short}={label(f.of(trial))}"
        for f in sorted(facts.fields, key=lambda f: f is not facts.main)
        if f.name in trial.config
    )
    # The reason of a failure takes the place of the config; the report and the JSON have both.
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
    return [_flat(cell) for cell in cells]


def _rank(trial: Trial) -> int:
    return _ORDER.index(trial.status) if trial.status in _ORDER else len(_ORDER)


def _flat(text: object) -> str:
    """The text as one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in str(text))
