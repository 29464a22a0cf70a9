"""Attempts, records and ledger rows with defaults for all fields that a test does not name."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.run.ledger import StepRow
from orchestrator.run.record import Attempt, RunRecord


def attempt(number: int = 1, **fields: Any) -> Attempt:
    """An attempt of another machine."""
    defaults: dict[str, Any] = {
        "host": "elsewhere",
        "boot_id": "another machine",
        "pid": 1,
        "pid_started": "1",
        "started_at": 0.0,
        "heartbeat_at": 0.0,
    }
    return Attempt(number=number, **(defaults | fields))


def disruption(cause: str = "node", step: int = 0) -> dict[str, Any]:
    """The end of a worker group, as a record has it."""
    ended = {"workers": 2, "workers_after": 2, "lost_s": 1.5, "replayed_steps": 1}
    return {"cause": cause, "step": step, **ended}


def record_of(*from_steps: int | None) -> RunRecord:
    """A run whose attempts 1, 2, ... continued from these steps."""
    attempts = tuple(attempt(number, from_step=step) for number, step in enumerate(from_steps, 1))
    return RunRecord(run="night", created_at=0.0, result_fields={}, attempts=attempts)


def step_row(step: int, **fields: Any) -> StepRow:
    """A row of half a second with loss 1 / step and 100 tokens per step."""
    defaults: dict[str, Any] = {
        "loss": 1 / step,
        "lr": 0.1,
        "grad_norm": 2.0,
        "tokens": 100 * step,
        "world_size": 1,
        "step_s": 0.5,
        "at": 1e9 + step,
        "sample_ids": np.arange(2, dtype=np.int64),
    }
    return StepRow(step=step, **(defaults | fields))
