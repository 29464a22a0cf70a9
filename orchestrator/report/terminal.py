"""A run as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from data.cleaning.clean import told
from orchestrator.console import Console
from orchestrator.run.run import Run
from orchestrator.run.summary import describe

LAST_RESTARTS, LAST_DECISIONS = 10, 6
"""Restarts of the workers, and decisions about them, that are told of in the table; the JSON has all."""


def print_run(run: Run, console: Console) -> None:
    """The run as a table."""
    summary = describe(run)
    table = Table(title=f"run {summary['run']}", show_header=False, title_justify="left")
    phase = f", {summary['phase']}" if summary["status"] == "running" else ""
    table.add_row("status", summary["status"] + phase + (f": {summary['message']}" if summary["message"] else ""))
    table.add_row(
        "step",
        f"{summary['step']:,} of {summary['steps']:,}, {summary['tokens']:,} tokens; "
        f"{summary['attempts']} attempt(s), {summary['restarts']} restart(s) of the workers",
    )
    if summary["samples"]:
        samples = summary["samples"]
        table.add_row(
            "samples",
            f"{samples['seen']:,} seen of {samples['expected']:,} expected, {samples['duplicated']} duplicated, "
            f"{samples['missing']} missing; digest {samples['digest'][:16]}",
        )
    if summary["skipped_steps"]:
        left_out = ", ".join(map(str, summary["skipped_steps"]))
        table.add_row("left out", f"the data of step {left_out}, on which the loss went astray")
    if summary["skipped_units"]["count"]:
        table.add_row(
            "skipped",
            f"{summary['skipped_units']['count']} bad units: " + "; ".join(summary["skipped_units"]["reasons"]),
        )
    if summary["cleaning_steps"]:
        read = f"over the {summary['units_read']:,} units read so far:" if summary["units_read"] else "over all units:"
        table.add_row("data", "\n".join([read, *told(summary["cleaning_steps"])]))
    if summary["pairs_too_long"]:
        table.add_row("too long", f"{summary['pairs_too_long']:,} pairs, left out")
    if summary["loss"]["train"] is not None:
        table.add_row("training loss", f"{summary['loss']['train']:.4f}")
    if summary["loss"]["val"] is not None:
        perplexity, bits = summary["val_perplexity"], summary["val_bits_per_byte"]
        whose = "; averaged weights" if summary["val_weights"] == "averaged" else ""
        table.add_row(
            "held out",
            f"loss {summary['loss']['val']:.4f}, perplexity {perplexity:.2f}, {bits:.4f} bits per byte{whose}",
        )
    if summary["translations"]:
        scores = summary["translations"]
        table.add_row(
            "translations",
            f"BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f} over {scores['translated']} held-out pairs; "
            f"{scores['bleu_signature']}",
        )
    if summary["tokens_per_s"]:
        table.add_row(
            "speed", f"{summary['tokens_per_s']:,.0f} tokens/s; first step after {summary['first_step_s']:.1f} s"
        )
    if summary["model_flops_per_s"]:
        table.add_row("computed", _told_flops(summary))
    if summary["disruptions"]:
        table.add_row("restarts", "\n".join(_told(each) for each in summary["disruptions"][-LAST_RESTARTS:]))
    if summary["restarts"]:
        newest = summary["decisions"][-LAST_DECISIONS:]
        table.add_row("decisions", "\n".join(f"step {each['step']}: {each['what']}" for each in newest))
    table.add_row(
        "workers", ", ".join(f"{size} from step {step}" for step, size in summary["world_sizes"]) or "none yet"
    )
    seconds = {cause.removesuffix("_s"): value for cause, value in summary["goodput"].items() if value >= 0.05}
    wall = seconds.pop("wall", 0.0)
    table.add_row(
        "time", ", ".join(f"{cause} {value:.1f} s" for cause, value in seconds.items()) + f"; wall {wall:.1f} s"
    )
    if summary["checkpoints"]:
        table.add_row("checkpoint", summary["checkpoints"][-1]["url"])
    console.rich.print(table)


def _told_flops(summary: dict[str, Any]) -> str:
    """Model FLOP/s and, where it is known, utilization, in a line."""
    told = f"{summary['model_flops_per_s'] / 1e12:,.3g} model TFLOP/s on {summary['device'] or 'a device not known'}"
    return told if summary["mfu"] is None else f"{told}, {summary['mfu']:.1%} of what it can do"


def _told(disruption: dict[str, Any]) -> str:
    """An end of a worker group, in a line."""
    line = f"after step {disruption['step']}: {disruption['cause']}, {disruption['workers']} workers"
    if disruption["workers_after"] is not None:
        line += f" -> {disruption['workers_after']}, {disruption['replayed_steps']} steps done again"
    return line if disruption["lost_s"] is None else f"{line}, {disruption['lost_s']:.1f} s to the next new one"
