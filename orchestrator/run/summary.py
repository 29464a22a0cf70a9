"""The summary of a run: from its record, newest checkpoint and ledger, or from the progress of one that is live."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from data.cleaning.clean import named_rows
from data.feed.spec import FeedSpec
from data.order.known_units import Excluded
from data.shards.manifest import Manifest
from orchestrator.config.recipe import RunConfig
from orchestrator.run.audit import Audit, audit
from orchestrator.run.checkpoint import PROGRESS, fetch_newest, list_checkpoints
from orchestrator.run.fence import liveness
from orchestrator.run.goodput import add_up
from orchestrator.run.ledger import metrics_lines, read_segments
from orchestrator.run.progress import Progress
from orchestrator.run.record import Attempt
from orchestrator.run.run import Run
from orchestrator.run.state import StepSeconds
from orchestrator.run.utilization import Utilization, peak_of, utilization

_OF_TRANSLATIONS = ("bleu", "bleu_signature", "chrf", "chrf_signature", "translated")


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
    excluded = Excluded.of_json(state.get("excluded", {}))
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
        "skipped_steps": state.get("skipped_steps", []),
        "skipped_units": {"count": len(state["skipped"]), "reasons": list(state["skipped"].values())[:10]},
        "cleaning_steps": record.cleaning.get("report") or named_rows(excluded.steps, run.config.data.cleaning),
        "units_read": excluded.units,
        "pairs_too_long": excluded.too_long,
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
    if attempt.status in ("preparing", "running") and liveness(attempt) is None:
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


def live_summary(
    config: RunConfig, attempts: Sequence[Attempt], progress: Progress, goodput: Mapping[str, float]
) -> dict[str, Any]:
    """What there is to say of the run now. Names that `manta show --json` has, too, mean the same.

    Args:
        attempts: of the run; the last is the one that goes on.
        goodput: seconds by cause over all attempts.
    """
    row, last, result = progress.row, attempts[-1], progress.result or {}
    evaluated = progress.evaluations[-1]["val_loss"] if progress.evaluations else None
    seconds = progress.step_seconds or StepSeconds()
    peak = peak_of((attempt.device for attempt in attempts), config.train.precision, config.observe.peak_flops)
    used = utilization(last.flops_per_token, row.get("tokens", 0), *seconds, peak)
    return {
        "run": config.run,
        "phase": last.phase,
        "attempts": len(attempts),
        "disruptions": [each for attempt in attempts for each in attempt.disruptions],
        "step": row.get("step", progress.restored_step),
        "steps": config.train.steps,
        "tokens": row.get("tokens"),
        "loss": {"train": row.get("loss"), "val": result.get("val_loss", evaluated)},
        "lr": row.get("lr"),
        "grad_norm": row.get("grad_norm"),
        "world_size": last.world_size,
        "tokens_per_s": row["tokens"] / seconds.wall if row and seconds.wall else None,
        "flops_per_token": last.flops_per_token,
        "peak_flops": peak,
        "model_flops_per_s": used.model_flops_per_s,
        "mfu": used.mfu,
        "goodput": {f"{cause}_s": value for cause, value in goodput.items()},
        "checkpoint": progress.saved and {"step": progress.saved[0], "saved_at": progress.saved[1]},
    }
