"""`manta show`: a run as its record, its newest checkpoint and its ledger tell it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from safetensors.numpy import load_file

from data.cleaning.clean import named_rows, told
from data.feeder import FeedSpec
from data.known_units import LeftOut
from data.manifest import Manifest
from orchestrator.checkpoint import PROGRESS, fetch_newest, list_checkpoints
from orchestrator.config import load_recipe
from orchestrator.console import Console
from orchestrator.errors import UnknownRunError
from orchestrator.goodput import add_up
from orchestrator.ledger import Audit, audit, metrics_lines, read_segments
from orchestrator.observe.utilization import Utilization, peak_of, utilization
from orchestrator.recipe_file import find_recipe
from orchestrator.run import Run, open_run, reaching_storage
from orchestrator.run_record import Attempt, sign_of_life
from orchestrator.run_state import StepSeconds

_OF_TRANSLATIONS = ("bleu", "bleu_signature", "chrf", "chrf_signature", "translated")

LAST_RESTARTS, LAST_DECISIONS = 10, 6
"""Restarts of the workers, and decisions about them, that are told of in the table; the JSON has all."""


def show(run_or_recipe: str, as_json: bool = False, overrides: tuple[str, ...] = ()) -> None:
    """Print the story of a run or a sweep, as JSON or for a person.

    Raises:
        UnknownRunError: no recipe and no run has this name.
    """
    sweep = sweep_recipe(run_or_recipe)
    if sweep is not None:
        from orchestrator.sweep.show import show_sweep

        show_sweep(sweep, as_json, overrides)
        return
    config = load_recipe(find_recipe(run_or_recipe), overrides)
    with reaching_storage(config) as config:
        run = open_run(config)
        if as_json:
            print(json.dumps(describe(run), indent=2))
        else:
            print_run(run, Console())


def sweep_recipe(name: str) -> Path | None:
    """The recipe of the sweep that is meant, or None: it is no sweep's name or recipe."""
    from orchestrator.sweep.best import find_sweep

    try:
        return find_sweep(name)
    except UnknownRunError:
        return None


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; those beyond the newest checkpoint are not of the run."""
    return [json.loads(line) for line in metrics_lines(run.store)]


def describe(run: Run, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Everything there is to say of a run, as JSON has it.

    Args:
        rows: what `read_metrics` returns, where it has been read already.
    """
    record = run.record
    rows = read_metrics(run) if rows is None else rows
    with tempfile.TemporaryDirectory(prefix="manta-show-") as scratch:
        fetched = fetch_newest(run.store, record, (PROGRESS,), Path(scratch))
        state: dict[str, Any] = fetched[1] if fetched else {"step": 0, "tokens": 0, "ledger": [], "skipped": {}}
        samples = audit_samples(run, state, load_file(Path(scratch) / PROGRESS)["counts"] if fetched else None)
    left_out = LeftOut.of_json(state.get("left_out", {}))
    rows = [row for row in rows if row["step"] <= state["step"]]
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    goodput = ledger_of_seconds(record.attempts)
    seconds = StepSeconds(sum(row["step_s"] for row in rows), sum(row["step_s"] * row["world_size"] for row in rows))
    used = utilization_of(run, state["tokens"], seconds)
    return {
        "run": record.run,
        "status": status_of(record.last),
        "phase": record.last.phase,
        "message": record.last.message,
        "attempts": len(record.attempts),
        "restarts": sum(len(attempt.disruptions) for attempt in record.attempts),
        "disruptions": [{"attempt": a.number, **each} for a in record.attempts for each in a.disruptions],
        "decisions": [{"attempt": a.number, **each} for a in record.attempts for each in a.decisions],
        "step": state["step"],
        "steps": run.config.train.steps,
        "tokens": state["tokens"],
        "samples": {name: value for name, value in asdict(samples).items()} if samples else {},
        "bad_steps": state.get("bad_steps", []),
        "skipped_units": {"count": len(state["skipped"]), "reasons": list(state["skipped"].values())[:10]},
        "data_steps": record.cleaning.get("report") or named_rows(left_out.steps, run.config.data.steps),
        "units_read": left_out.units,
        "pairs_too_long": left_out.too_long,
        "loss": {"train": losses[-1] if losses else None, "val": record.result.get("val_loss")},
        "val_weights": "averaged" if record.averages_weights else "as trained",
        "val_perplexity": record.result.get("val_perplexity"),
        "val_bits_per_byte": record.result.get("val_bits_per_byte"),
        "translations": {
            name: record.result[f"val_{name}"] for name in _OF_TRANSLATIONS if f"val_{name}" in record.result
        },
        "world_size": record.last.world_size,
        "world_sizes": world_sizes(rows),
        "goodput": {f"{cause}_s": round(seconds, 3) for cause, seconds in goodput.items()},
        "tokens_per_s": round(state["tokens"] / seconds.wall, 1) if seconds.wall else None,
        "device": record.last.device,
        "model_flops_per_s": used.model_flops_per_s,
        "mfu": used.mfu,
        "first_step_s": record.last.first_step_s,
        "checkpoints": [
            {"step": name.step, "attempt": name.attempt, "url": run.store.url_of(f"checkpoints/{name}")}
            for name in list_checkpoints(run.store, record)
        ],
    }


def audit_samples(run: Run, state: dict[str, Any], counts: np.ndarray[Any, np.dtype[np.int64]] | None) -> Audit | None:
    """The proof that no sample was lost or doubled; None before the first checkpoint."""
    if counts is None or run.record.manifest is None:
        return None
    config = run.config
    manifest = Manifest.from_bytes(run.root.get(f"manifests/{run.record.manifest}.parquet"))
    order = FeedSpec.order_of(manifest, config.data, config.seed)
    return audit(
        order,
        counts,
        config.train.global_batch_size,
        state["step"],
        read_segments(run.store, state["ledger"]),
        config.data.bucket_steps if config.data.has_pairs else 1,
    )


def utilization_of(run: Run, tokens: int, seconds: StepSeconds) -> Utilization:
    """What the run has computed in steps that took `seconds` and trained on `tokens`, and of what it could have."""
    config, attempts = run.config, run.record.attempts
    per_token = next((each.flops_per_token for each in reversed(attempts) if each.flops_per_token), None)
    peak = peak_of((each.device for each in attempts), config.train.precision, config.observe.peak_flops)
    return utilization(per_token, tokens, *seconds, peak)


def status_of(attempt: Attempt) -> str:
    """The attempt's status; "died" where it says it lives and gives no sign of it."""
    if attempt.status in ("preparing", "running") and sign_of_life(attempt) is None:
        return "died"
    return attempt.status


def ledger_of_seconds(attempts: tuple[Attempt, ...]) -> dict[str, float]:
    """Seconds by cause over attempts and pauses, and `wall` from the first's start to the last's end."""
    total = add_up(attempt.goodput for attempt in attempts)
    for before, after in pairwise(attempts):
        total["idle"] += max(0.0, after.started_at - before.heartbeat_at)
    return total | {"wall": attempts[-1].heartbeat_at - attempts[0].started_at}


def world_sizes(rows: list[dict[str, Any]]) -> list[list[int]]:
    """[step, world size] wherever it changed, the first step included."""
    changes: list[list[int]] = []
    for row in rows:
        if not changes or changes[-1][1] != row["world_size"]:
            changes.append([row["step"], row["world_size"]])
    return changes


def print_run(run: Run, console: Console) -> None:
    """The run as a table."""
    story = describe(run)
    table = Table(title=f"run {story['run']}", show_header=False, title_justify="left")
    phase = f", {story['phase']}" if story["status"] == "running" else ""
    table.add_row("status", story["status"] + phase + (f": {story['message']}" if story["message"] else ""))
    table.add_row(
        "step",
        f"{story['step']:,} of {story['steps']:,}, {story['tokens']:,} tokens; "
        f"{story['attempts']} attempt(s), {story['restarts']} restart(s) of the workers",
    )
    if story["samples"]:
        samples = story["samples"]
        table.add_row(
            "samples",
            f"{samples['seen']:,} seen of {samples['expected']:,} expected, {samples['duplicated']} duplicated, "
            f"{samples['missing']} missing; digest {samples['digest'][:16]}",
        )
    if story["bad_steps"]:
        left_out = ", ".join(map(str, story["bad_steps"]))
        table.add_row("left out", f"the data of step {left_out}, on which the loss went astray")
    if story["skipped_units"]["count"]:
        table.add_row(
            "skipped", f"{story['skipped_units']['count']} bad units: " + "; ".join(story["skipped_units"]["reasons"])
        )
    if story["data_steps"]:
        read = f"over the {story['units_read']:,} units read so far:" if story["units_read"] else "over all units:"
        table.add_row("data", "\n".join([read, *told(story["data_steps"])]))
    if story["pairs_too_long"]:
        table.add_row("too long", f"{story['pairs_too_long']:,} pairs, left out")
    if story["loss"]["train"] is not None:
        table.add_row("training loss", f"{story['loss']['train']:.4f}")
    if story["loss"]["val"] is not None:
        perplexity, bits = story["val_perplexity"], story["val_bits_per_byte"]
        whose = "; averaged weights" if story["val_weights"] == "averaged" else ""
        table.add_row(
            "held out", f"loss {story['loss']['val']:.4f}, perplexity {perplexity:.2f}, {bits:.4f} bits per byte{whose}"
        )
    if story["translations"]:
        scores = story["translations"]
        table.add_row(
            "translations",
            f"BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f} over {scores['translated']} held-out pairs; "
            f"{scores['bleu_signature']}",
        )
    if story["tokens_per_s"]:
        table.add_row("speed", f"{story['tokens_per_s']:,.0f} tokens/s; first step after {story['first_step_s']:.1f} s")
    if story["model_flops_per_s"]:
        table.add_row("computed", _told_flops(story))
    if story["disruptions"]:
        table.add_row("restarts", "\n".join(_told(each) for each in story["disruptions"][-LAST_RESTARTS:]))
    if story["restarts"]:
        newest = story["decisions"][-LAST_DECISIONS:]
        table.add_row("decisions", "\n".join(f"step {each['step']}: {each['what']}" for each in newest))
    table.add_row("workers", ", ".join(f"{size} from step {step}" for step, size in story["world_sizes"]) or "none yet")
    seconds = {cause.removesuffix("_s"): value for cause, value in story["goodput"].items() if value >= 0.05}
    wall = seconds.pop("wall", 0.0)
    table.add_row(
        "time", ", ".join(f"{cause} {value:.1f} s" for cause, value in seconds.items()) + f"; wall {wall:.1f} s"
    )
    if story["checkpoints"]:
        table.add_row("checkpoint", story["checkpoints"][-1]["url"])
    console.rich.print(table)


def _told_flops(story: dict[str, Any]) -> str:
    """Model FLOP/s and, where it is known, utilization, in a line."""
    told = f"{story['model_flops_per_s'] / 1e12:,.3g} model TFLOP/s on {story['device'] or 'a device not known'}"
    return told if story["mfu"] is None else f"{told}, {story['mfu']:.1%} of what it can do"


def _told(disruption: dict[str, Any]) -> str:
    """An end of a worker group, in a line."""
    line = f"after step {disruption['step']}: {disruption['cause']}, {disruption['workers']} workers"
    if disruption["workers_after"] is not None:
        line += f" -> {disruption['workers_after']}, {disruption['replayed_steps']} steps done again"
    return line if disruption["lost_s"] is None else f"{line}, {disruption['lost_s']:.1f} s to the next new one"
