"""The summary of a run, built from what is stored or from the progress of a live attempt.

`summary_of_run` builds what `manta show --json` prints; the terminal table and the report are made from it.
`live_summary` builds what the metrics are set from. `RunSummary` holds the fields that both have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict

from data.cleaning.clean import named_rows
from data.order.known_units import ExcludedDocuments
from orchestrator.config.recipe import RunConfig
from orchestrator.run.audit import audit_run
from orchestrator.run.checkpoint import list_checkpoints
from orchestrator.run.fence import liveness
from orchestrator.run.goodput import add_up
from orchestrator.run.progress import Progress
from orchestrator.run.record import LIVE, Attempt
from orchestrator.run.run import Run
from orchestrator.run.state import StepSeconds
from orchestrator.run.stored import StoredState, read_state, world_sizes
from orchestrator.run.utilization import peak_of, utilization

_TRANSLATION_SCORES = ("bleu", "bleu_signature", "chrf", "chrf_signature", "translated")


class Losses(TypedDict):
    """Training loss of the newest step and newest held-out loss, nats per token; None if not known."""

    train: float | None
    val: float | None


class RunSummary(TypedDict):
    """The part of a run's summary that both builders give. A field means the same in both.

    Attributes:
        phase: what the newest attempt's loop is doing, see `Progress.phase`.
        disruptions: ends of worker groups, see `Disruption.summary`, each with the number of its `attempt` and its own
            `number` among all of the run, from 1; the newest ones.
        restart_counts: number of all ends of worker groups by cause.
        outages: of stores, see `Progress.outages`, each with the number of its `attempt`.
        world_size: workers now; 0 while there are none.
        tokens_per_s: target tokens per second of step time, mean over the run.
        model_flops_per_s, mfu: see `Utilization`.
        goodput: seconds by cause as `<cause>_s`, and `wall_s`.
    """

    run: str
    phase: str
    attempts: int
    disruptions: list[dict[str, Any]]
    restart_counts: dict[str, int]
    outages: list[dict[str, Any]]
    steps: int
    loss: Losses
    world_size: int
    tokens_per_s: float | None
    model_flops_per_s: float | None
    mfu: float | None
    goodput: dict[str, float]


class SkippedUnits(TypedDict):
    """Units that could not be read: how many, and the reasons of the first ten."""

    count: int
    reasons: list[str]


class StoredSummary(RunSummary):
    """The summary of a run up to its newest checkpoint, as `manta show --json` prints it.

    Attributes:
        status: status of the newest attempt, or "died"; see `status_of`.
        message: why the newest attempt ended.
        step: optimizer updates in the newest checkpoint.
        tokens: target tokens trained on up to that step.
        restarts: number of ends of worker groups.
        decisions: decisions about workers, see `Progress.decisions`, each with the number of its `attempt`.
        samples: the audit of the sample ledger, see `audit_run`.
        skipped_steps: steps whose data was skipped because the loss spiked on it.
        cleaning_steps: a row for every step of `data.cleaning`: documents and characters in and removed.
        units_read: units that `cleaning_steps` covers; 0 if it covers all.
        pairs_too_long: pairs that were excluded because they are longer than the model takes.
        val_weights: "averaged" or "as trained": the weights that were evaluated.
        translations: scores of the final evaluation's translations; empty if there are none.
        world_sizes: [step, world size] at the first step and at every change.
        device: what the workers compute on, as CUDA names it.
        first_step_s: seconds from the newest attempt's command to its first step.
        checkpoints: the stored checkpoints, oldest first.
    """

    status: str
    message: str
    step: int
    tokens: int
    restarts: int
    decisions: list[dict[str, Any]]
    samples: dict[str, Any]
    skipped_steps: list[int]
    skipped_units: SkippedUnits
    cleaning_steps: list[dict[str, Any]]
    units_read: int
    pairs_too_long: int
    val_weights: str
    val_perplexity: float | None
    val_bits_per_byte: float | None
    translations: dict[str, Any]
    world_sizes: list[list[int]]
    device: str
    first_step_s: float | None
    checkpoints: list[dict[str, Any]]


class SavedCheckpoint(TypedDict):
    """Step of a checkpoint and when it was saved, seconds since the epoch."""

    step: int
    saved_at: float


class LiveSummary(RunSummary):
    """The summary of a run at the newest step that its live attempt reported.

    Attributes:
        step: optimizer updates done; None before the attempt has restored the run's state.
        tokens: target tokens trained on; None before the attempt's first step.
        lr, grad_norm: of the newest step.
        flops_per_token: model FLOPs per target token.
        peak_flops: peak FLOP/s of one worker's device.
        checkpoint: the newest checkpoint.
    """

    step: int | None
    tokens: int | None
    lr: float | None
    grad_norm: float | None
    flops_per_token: float | None
    peak_flops: float | None
    checkpoint: SavedCheckpoint | None


def summary_of_run(run: Run, stored: StoredState | None = None, *, audits_all: bool = False) -> StoredSummary:
    """Builds the summary of a stored run.

    Args:
        stored: result of `read_state`, if it has been read already.
        audits_all: audit the sample ledger however long it is, see `audit_run`.
    """
    record, config = run.record, run.config
    stored = read_state(run.store, run.record) if stored is None else stored
    state, rows = stored.saved, stored.rows
    samples = audit_run(run, state, stored.counts, audits_all=audits_all)
    excluded, skipped = ExcludedDocuments.of_json(state.get("excluded", {})), state.get("skipped", {})
    losses = rows["loss"].drop_null()
    step_s, world_size = rows["step_s"].to_numpy(), rows["world_size"].to_numpy()
    common = _summary(
        config,
        record.attempts,
        tokens=state["tokens"],
        losses=Losses(train=losses[-1].as_py() if len(losses) else None, val=record.result.get("val_loss")),
        seconds=StepSeconds(float(step_s.sum()), float((step_s * world_size).sum())),
        flops_per_token=_newest_flops_per_token(record.attempts),
        goodput=goodput_of(record.attempts),
    )
    common["goodput"] = {cause: round(seconds, 3) for cause, seconds in common["goodput"].items()}
    if common["tokens_per_s"] is not None:
        common["tokens_per_s"] = round(common["tokens_per_s"], 1)
    return {
        **common,
        "status": status_of(run, record.last),
        "message": record.last.message,
        "step": state["step"],
        "tokens": state["tokens"],
        "restarts": sum(common["restart_counts"].values()),
        "decisions": _numbered(record.attempts, "decisions"),
        "samples": samples,
        "skipped_steps": state.get("skipped_steps", []),
        "skipped_units": {"count": len(skipped), "reasons": list(skipped.values())[:10]},
        "cleaning_steps": record.cleaning.get("report") or named_rows(excluded.steps, config.data.cleaning),
        "units_read": excluded.units,
        "pairs_too_long": excluded.too_long,
        "val_weights": "averaged" if record.averages_weights else "as trained",
        "val_perplexity": record.result.get("val_perplexity"),
        "val_bits_per_byte": record.result.get("val_bits_per_byte"),
        "translations": {
            name: record.result[f"val_{name}"] for name in _TRANSLATION_SCORES if f"val_{name}" in record.result
        },
        "world_sizes": world_sizes(rows),
        "device": record.last.device,
        "first_step_s": record.last.first_step_s,
        "checkpoints": [
            {"step": name.step, "attempt": name.attempt, "url": run.store.url_of(f"checkpoints/{name}")}
            for name in list_checkpoints(run.store, record)
        ],
    }


def live_summary(
    config: RunConfig, attempts: Sequence[Attempt], progress: Progress, goodput: Mapping[str, float]
) -> LiveSummary:
    """Builds the summary of a run with a live attempt.

    Args:
        attempts: attempts of the run; the last is the live one.
        goodput: seconds by cause over all attempts, see `goodput_of`.
    """
    row, last, result = progress.row, attempts[-1], progress.result or {}
    evaluated = progress.evaluations[-1]["val_loss"] if progress.evaluations else None
    common = _summary(
        config,
        attempts,
        tokens=row.get("tokens"),
        losses=Losses(train=row.get("loss"), val=result.get("val_loss", evaluated)),
        seconds=progress.step_seconds or StepSeconds(),
        flops_per_token=last.flops_per_token,
        goodput=goodput,
    )
    return {
        **common,
        "step": row.get("step", progress.restored_step),
        "tokens": row.get("tokens"),
        "lr": row.get("lr"),
        "grad_norm": row.get("grad_norm"),
        "flops_per_token": last.flops_per_token,
        "peak_flops": _peak_flops(config, attempts),
        "checkpoint": {"step": progress.saved[0], "saved_at": progress.saved[1]} if progress.saved else None,
    }


def _summary(
    config: RunConfig,
    attempts: Sequence[Attempt],
    *,
    tokens: int | None,
    losses: Losses,
    seconds: StepSeconds,
    flops_per_token: float | None,
    goodput: Mapping[str, float],
) -> RunSummary:
    last = attempts[-1]
    peak = _peak_flops(config, attempts)
    used = utilization(flops_per_token, tokens or 0, step_s=seconds.wall, worker_s=seconds.workers, peak=peak)
    return {
        "run": config.run,
        "phase": last.phase,
        "attempts": len(attempts),
        "disruptions": list(_disruptions(attempts)),
        "restart_counts": dict(sum((Counter(attempt.restart_counts) for attempt in attempts), Counter())),
        "outages": _numbered(attempts, "outages"),
        "steps": config.train.steps,
        "loss": losses,
        "world_size": last.world_size,
        "tokens_per_s": tokens / seconds.wall if tokens is not None and seconds.wall else None,
        "model_flops_per_s": used.model_flops_per_s,
        "mfu": used.mfu,
        "goodput": {f"{cause}_s": value for cause, value in goodput.items()},
    }


def _numbered(attempts: Sequence[Attempt], field: str) -> list[dict[str, Any]]:
    """The entries of a list field of all attempts, each with the number of its attempt."""
    return [{"attempt": attempt.number, **each} for attempt in attempts for each in getattr(attempt, field)]


def _disruptions(attempts: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
    before = 0
    for attempt in attempts:
        before += sum(attempt.restart_counts.values())
        for number, each in enumerate(attempt.disruptions, before - len(attempt.disruptions) + 1):
            yield {"attempt": attempt.number, "number": number, **each}


def _newest_flops_per_token(attempts: Sequence[Attempt]) -> float | None:
    return next((each.flops_per_token for each in reversed(attempts) if each.flops_per_token), None)


def _peak_flops(config: RunConfig, attempts: Sequence[Attempt]) -> float | None:
    return peak_of((each.device for each in attempts), config.train.precision, config.observe.peak_flops)


def status_of(run: Run, attempt: Attempt) -> str:
    """Status of the attempt; "died" if its record says that it is live and its process or heartbeat is gone."""
    lives = attempt == run.record.last and liveness(attempt, run.store) is not None
    return "died" if attempt.status in LIVE and not lives else attempt.status


def goodput_of(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds by cause over attempts and the pauses between them, and `wall`: from the first start to the last end."""
    total = add_up(attempt.goodput for attempt in attempts)
    for before, after in pairwise(attempts):
        total["idle"] += max(0.0, after.started_at - before.heartbeat_at)
    return total | {"wall": attempts[-1].heartbeat_at - attempts[0].started_at}
