"""Prints a run's summary as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from data.cleaning.clean import report_lines
from orchestrator.console import Console
from orchestrator.report.format import clock, duration
from orchestrator.run.record import LIVE
from orchestrator.run.run import Run
from orchestrator.run.summary import StoredSummary, summary_of_run

LAST_RESTARTS, LAST_DECISIONS = 10, 6
"""Restarts of the workers, and decisions about them, that the table shows; `manta show --json` has all."""


def print_run(run: Run, console: Console, *, audits_all: bool = False) -> None:
    """Prints the summary of the run, see `summary_of_run`."""
    summary = summary_of_run(run, audits_all=audits_all)
    table = Table(title=f"run {summary['run']}", show_header=False, title_justify="left")
    for name, text in table_rows(summary):
        table.add_row(name, text)
    console.rich.print(table)


Rows = Iterator[tuple[str, str]]


def table_rows(summary: StoredSummary) -> Rows:
    """(name, text) of every row of the table; facts that the summary does not have are omitted."""
    for part in (_state, _data, _scores, _speed, _workers):
        yield from part(summary)


def _state(summary: StoredSummary) -> Rows:
    phase = f", {summary['phase']}" if summary["status"] == "running" else ""
    yield "status", summary["status"] + phase + (f": {summary['message']}" if summary["message"] else "")
    yield (
        "step",
        f"{summary['step']:,} of {summary['steps']:,}, {summary['tokens']:,} tokens; "
        f"{summary['attempts']} attempt(s), {summary['restarts']} restart(s) of the workers",
    )


def _data(summary: StoredSummary) -> Rows:
    samples = summary["samples"]
    if samples.keys() == {"expected"}:
        yield "samples", f"{samples['expected']:,} expected; manta show --audit compares them with those seen"
    elif samples:
        yield (
            "samples",
            f"{samples['seen']:,} seen of {samples['expected']:,} expected, {samples['duplicated']} duplicated, "
            f"{samples['missing']} missing; digest {samples['digest'][:16]}",
        )
    if summary["skipped_steps"]:
        steps = ", ".join(map(str, summary["skipped_steps"]))
        yield "skipped steps", f"the data of step {steps}, where the loss spiked"
    if summary["skipped_units"]["count"]:
        reasons = "; ".join(summary["skipped_units"]["reasons"])
        yield "skipped units", f"{summary['skipped_units']['count']} unreadable units: {reasons}"
    if summary["cleaning_steps"]:
        read = f"over the {summary['units_read']:,} units read so far:" if summary["units_read"] else "over all units:"
        yield "cleaning", "\n".join([read, *report_lines(summary["cleaning_steps"])])
    if summary["pairs_too_long"]:
        yield "too long", f"{summary['pairs_too_long']:,} pairs, excluded"


def _scores(summary: StoredSummary) -> Rows:
    if summary["loss"]["train"] is not None:
        yield "training loss", f"{summary['loss']['train']:.4f}"
    if summary["loss"]["val"] is not None:
        perplexity, bits = summary["val_perplexity"], summary["val_bits_per_byte"]
        text = f"loss {summary['loss']['val']:.4f}"
        text += "" if perplexity is None else f", perplexity {perplexity:.2f}"
        text += "" if bits is None else f", {bits:.4f} bits per byte"
        yield "held out", text + ("; averaged weights" if summary["val_weights"] == "averaged" else "")
    if scores := summary["translations"]:
        yield (
            "translations",
            f"BLEU {_score(scores, 'bleu')}, chrF {_score(scores, 'chrf')} over {scores.get('translated', '?')} "
            f"held-out pairs; {scores.get('bleu_signature', 'no signature')}",
        )


def _score(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.2f}" if name in scores else "?"


def _speed(summary: StoredSummary) -> Rows:
    if summary["tokens_per_s"]:
        first = summary["first_step_s"]  # None until the newest attempt has done a step
        after = "" if first is None else f"; first step after {first:.1f} s"
        yield "speed", f"{summary['tokens_per_s']:,.0f} tokens/s{after}"
    if summary["model_flops_per_s"]:
        device = summary["device"] or "an unknown device"
        mfu = "" if summary["mfu"] is None else f", {summary['mfu']:.1%} of its peak"
        yield "model FLOPs", f"{summary['model_flops_per_s'] / 1e12:,.3g} TFLOP/s on {device}{mfu}"


def _workers(summary: StoredSummary) -> Rows:
    if summary["disruptions"]:
        yield "restarts", "\n".join(_disruption_line(each) for each in summary["disruptions"][-LAST_RESTARTS:])
    if summary["restarts"]:
        newest = summary["decisions"][-LAST_DECISIONS:]
        yield "decisions", "\n".join(f"step {each['step']}: {each['what']}" for each in newest)
    if summary["outages"]:
        yield "store", "\n".join(_outage_line(each, summary) for each in summary["outages"][-LAST_RESTARTS:])
    sizes = (f"{size} from step {step}" for step, size in summary["world_sizes"])
    yield "workers", ", ".join(sizes) or "none yet"
    seconds = {cause.removesuffix("_s"): value for cause, value in summary["goodput"].items() if value >= 0.05}
    wall = seconds.pop("wall", 0.0)
    yield "time", ", ".join(f"{cause} {value:.1f} s" for cause, value in seconds.items()) + f"; wall {wall:.1f} s"
    if summary["checkpoints"]:
        yield "checkpoint", summary["checkpoints"][-1]["url"]


def _outage_line(outage: Mapping[str, Any], summary: StoredSummary) -> str:
    since = f"{outage['doing']}: failed at {clock(outage['since'])}"
    if outage["until"] is not None:
        return f"{since} for {duration(outage['until'] - outage['since'])}"
    goes_on = outage["attempt"] == summary["attempts"] and summary["status"] in LIVE
    return f"{since} {'and still does' if goes_on else 'until the attempt ended'}: {outage['problem']}"


def _disruption_line(disruption: Mapping[str, Any]) -> str:
    line = f"after step {disruption['step']}: {disruption['cause']}, {disruption['workers']} workers"
    if disruption["workers_after"] is not None:
        line += f" -> {disruption['workers_after']}, {disruption['replayed_steps']} steps repeated"
    return line if disruption["lost_s"] is None else f"{line}, {disruption['lost_s']:.1f} s to the next new step"
