"""What a run's report is made of, gathered from its record, its metrics and its folder; all of it is JSON."""

from __future__ import annotations

import re
import time
from typing import Any

from data.cleaning.clean import told
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import flatten, resolved
from orchestrator.config.schema import default_of
from orchestrator.run.record import Attempt, RunRecord
from orchestrator.run.run import Run
from orchestrator.run.summary import describe, read_metrics, status_of

_SEGMENT = re.compile(r"(?P<first>\d+)-(?P<last>\d+)-a(?P<attempt>\d+)\.parquet$")

_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
"""User and password in a URL."""


def summary_of(run: Run) -> dict[str, Any]:
    """The summary of a run: what `describe` says of it, and its rows, attempts, evaluations, saves and config."""
    rows = read_metrics(run)
    summary = describe(run, rows)
    summary = without_keys(
        summary
        | {
            "made_at": time.time(),
            "url": run.store.url_of(""),
            "lives": [_life(attempt) for attempt in run.record.attempts],
            "evaluations": evaluations_of(run.record),
            "saves": saves_of(run, summary["step"]),
            "cleaning": told(summary["cleaning_steps"]) if summary["cleaning_steps"] else [],
            "config": config_of(run),
        }
    )
    return {**summary, "rows": [row for row in rows if row["step"] <= summary["step"]]}


def without_keys(value: Any) -> Any:
    """JSON without the users and passwords that URLs in it may have; fields of keys are not in what is given."""
    if isinstance(value, dict):
        return {name: without_keys(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_keys(each) for each in value]
    return _IN_URL.sub("…@", value) if isinstance(value, str) else value


def evaluations_of(record: RunRecord) -> list[dict[str, Any]]:
    """Evaluations on the way that belong to the run, by step, and the last one, which the run ends with."""
    found: dict[int, dict[str, Any]] = {
        each["step"]: each
        for attempt in record.attempts
        for each in attempt.evaluations
        if record.continues(attempt.number, each["step"])
    }
    if "val_loss" in record.result:
        step, at = record.result.get("step", record.last.step), record.last.heartbeat_at
        scores = {name: record.result.get(name) for name in ("val_loss", "val_bits_per_byte", "val_bleu", "val_chrf")}
        found[step] = {"step": step, "at": at, **scores}
    return [found[step] for step in sorted(found)]


def saves_of(run: Run, newest: int) -> list[dict[str, int]]:
    """Step and attempt of every checkpoint that was written up to step `newest`, also of those deleted since.

    Each has put its steps into a segment of the ledger, and segments stay.
    """
    found = []
    for info in run.store.list("ledger/"):
        if match := _SEGMENT.search(info.key):
            step, attempt = int(match["last"]), int(match["attempt"])
            if step <= newest and run.record.continues(attempt, step):
                found.append({"step": step, "attempt": attempt})
    return sorted(found, key=lambda save: save["step"])


def config_of(run: Run) -> list[dict[str, Any]]:
    """Every field by dotted name: those that decide the result as the run is pinned to them, the others as given now.

    The keys to the store are not among them.
    """
    fields = flatten(resolved(run.config)) | run.record.result_fields
    return [
        {"name": name, "value": value, "is_default": value == _plain(default_of(RunConfig, name))}
        for name, value in fields.items()
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _life(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "host": attempt.host,
        "status": status_of(attempt),
        "message": attempt.message,
        "started_at": attempt.started_at,
        "ended_at": attempt.heartbeat_at,
        "from_step": attempt.from_step,
        "step": attempt.step,
        "first_step_s": attempt.first_step_s,
        "versions": attempt.versions,
    }
