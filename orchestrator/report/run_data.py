"""Gathers the data of a run's report from its summary, record, metrics and folder. All of it is JSON."""

from __future__ import annotations

import re
import time
from typing import Any

from data.cleaning.clean import report_lines
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import flatten, resolved
from orchestrator.config.schema import default_of
from orchestrator.run.record import Attempt, RunRecord
from orchestrator.run.run import Run
from orchestrator.run.summary import StoredSummary, read_metrics, status_of, summary_of_run

_SEGMENT = re.compile(r"(?P<first>\d+)-(?P<last>\d+)-a(?P<attempt>\d+)\.parquet$")

_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
"""User and password in a URL."""


class ReportData(StoredSummary):
    """The summary of a run, and what only the report shows.

    Attributes:
        made_at: when the data was gathered, seconds since the epoch.
        url: where the run is stored.
        lives: attempts, see `_life`.
        evaluations: evaluations that belong to the run, by step.
        saves: step and attempt of every checkpoint ever saved.
        cleaning: lines about the steps of `data.cleaning`.
        config: every field: name, value and whether it is the default.
        rows: rows of the metrics up to the newest checkpoint.
    """

    made_at: float
    url: str
    lives: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    saves: list[dict[str, int]]
    cleaning: list[str]
    config: list[dict[str, Any]]
    rows: list[dict[str, Any]]


def report_data(run: Run) -> ReportData:
    """Gathers the data of a run's report."""
    rows = read_metrics(run)
    summary = summary_of_run(run, rows)
    data: ReportData = {
        **summary,
        "made_at": time.time(),
        "url": run.store.url_of(""),
        "lives": [_life(run, attempt) for attempt in run.record.attempts],
        "evaluations": evaluations_of(run.record),
        "saves": saves_of(run, summary["step"]),
        "cleaning": report_lines(summary["cleaning_steps"]) if summary["cleaning_steps"] else [],
        "config": config_of(run),
        "rows": [],
    }
    # The rows hold numbers only and may be millions, so they are not searched for passwords.
    redacted: ReportData = without_passwords(data)
    return {**redacted, "rows": [row for row in rows if row["step"] <= summary["step"]]}


def without_passwords(value: Any) -> Any:
    """JSON without the users and passwords of URLs in it. (The config is given without the fields of keys.)"""
    if isinstance(value, dict):
        return {name: without_passwords(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_passwords(each) for each in value]
    return _IN_URL.sub("…@", value) if isinstance(value, str) else value


def evaluations_of(record: RunRecord) -> list[dict[str, Any]]:
    """Evaluations that belong to the run, by step: those during training, and the final one."""
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
    """Step and attempt of every checkpoint saved up to step `newest`, also of those deleted since.

    Every checkpoint added a segment to the ledger, and segments are never deleted.
    """
    found = []
    for info in run.store.list("ledger/"):
        if match := _SEGMENT.search(info.key):
            step, attempt = int(match["last"]), int(match["attempt"])
            if step <= newest and run.record.continues(attempt, step):
                found.append({"step": step, "attempt": attempt})
    return sorted(found, key=lambda save: save["step"])


def config_of(run: Run) -> list[dict[str, Any]]:
    """Every config field by dotted name, without the keys to the store.

    Fields that decide the result have the values that the run is pinned to; the others have their present values.
    """
    fields = flatten(resolved(run.config)) | run.record.result_fields
    return [
        {"name": name, "value": value, "is_default": value == _plain(default_of(RunConfig, name))}
        for name, value in fields.items()
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _life(run: Run, attempt: Attempt) -> dict[str, Any]:
    """An attempt as the report shows it."""
    return {
        "number": attempt.number,
        "host": attempt.host,
        "status": status_of(run, attempt),
        "message": attempt.message,
        "started_at": attempt.started_at,
        "ended_at": attempt.heartbeat_at,
        "from_step": attempt.from_step,
        "step": attempt.step,
        "first_step_s": attempt.first_step_s,
        "versions": attempt.versions,
    }
