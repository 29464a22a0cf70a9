"""Gathers the data of a run's report from its summary, record, metrics and folder. All of it is JSON."""

from __future__ import annotations

import re
import time
from typing import Any

import pyarrow as pa

from cluster.known_secrets import struck
from data.cleaning.clean import report_lines
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import flatten, resolved
from orchestrator.config.schema import default_of
from orchestrator.run.ledger import METRICS_SCHEMA
from orchestrator.run.record import Attempt, RunRecord
from orchestrator.run.run import Run
from orchestrator.run.stored import read_state
from orchestrator.run.summary import StoredSummary, status_of, summary_of_run

_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
"""User and password in a URL."""


class ReportData(StoredSummary):
    """The summary of a run, and what only the report shows.

    Attributes:
        made_at: when the data was gathered, seconds since the epoch.
        url: where the run is stored.
        lives: attempts, see `_life`.
        evaluations: evaluations that belong to the run, by step.
        saves: steps of all checkpoints saved, also of those deleted since.
        cleaning: lines about the steps of `data.cleaning`.
        config: every field: name, value and whether it is the default.
        rows: the rows of the ledger up to the newest checkpoint: a list for every column but the sample ids.
    """

    made_at: float
    url: str
    lives: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    saves: list[int]
    cleaning: list[str]
    config: list[dict[str, Any]]
    rows: dict[str, list[Any]]


def report_data(run: Run, *, audits_all: bool = False) -> ReportData:
    """Gathers the data of a run's report.

    Args:
        audits_all: see `summary_of_run`.
    """
    stored = read_state(run.store, run.record)
    summary = summary_of_run(run, stored, audits_all=audits_all)
    data: ReportData = {
        **summary,
        "made_at": time.time(),
        "url": run.store.url_of(""),
        "lives": [_life(run, attempt) for attempt in run.record.attempts],
        "evaluations": evaluations_of(run.record),
        "saves": saves_in(stored.rows),
        "cleaning": report_lines(summary["cleaning_steps"]) if summary["cleaning_steps"] else [],
        "config": config_of(run),
        "rows": {},
    }
    # The rows hold numbers only and may be millions, so they are not searched for passwords.
    redacted: ReportData = without_passwords(data)
    return {**redacted, "rows": stored.rows.select(METRICS_SCHEMA.names).to_pydict()}


def without_passwords(value: Any) -> Any:
    """JSON without known secrets, and the users and passwords of URLs. (The config is given without fields of keys.)"""
    if isinstance(value, dict):
        return {name: without_passwords(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_passwords(each) for each in value]
    return _IN_URL.sub("…@", struck(value)) if isinstance(value, str) else value


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


def saves_in(rows: pa.Table) -> list[int]:
    """Steps of all checkpoints with which the rows were saved, also of those deleted since."""
    steps = rows["step"].to_numpy()
    saved: list[int] = steps[steps == rows["save"].to_numpy()].tolist()
    return saved


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
