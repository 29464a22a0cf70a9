"""The importance of fields, on made-up sweeps for which it is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sweep.report.facts import read
from orchestrator.sweep.report.importance import MIN_TRIALS, Effect, importance
from tests.orchestrator.sweep.summaries import realistic, summaries


def sweep(losses: Any, trials: int = 16, seed: int = 1) -> dict[str, Any]:
    """A sweep whose trials' losses are made of their config alone."""
    rng = random.Random(seed)
    told = []
    for number in range(trials):
        config = {
            "lr": 10 ** rng.uniform(-4, -1),
            "optimizer": ("sgd", "adam", "adamw")[number % 3],
            "dropout": rng.random(),
        }
        loss = losses(config, rng)
        told.append(
            {
                "id": f"t{number}",
                "status": "finished",
                "config": config,
                "step": 9,
                "steps": 9,
                "loss": loss,
                "curve": [[9, loss]],
            }
        )
    space = {
        "lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-1},
        "optimizer": {"kind": "choice", "values": ["sgd", "adam", "adamw"]},
        "dropout": {"kind": "uniform", "low": 0, "high": 1},
    }
    return {"trials": told, "space": space, "rungs": []}


def shares(summary: dict[str, Any]) -> dict[str, Effect]:
    return {effect.field.name: effect for effect in importance(read(summary)).effects}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("field", "losses"),
    [
        ("lr", lambda config, rng: 4 + math.log10(config["lr"]) + rng.gauss(0, 0.05)),
        (
            "lr",
            lambda config, rng: 4 + (math.log10(config["lr"]) + 2.5) ** 2 + rng.gauss(0, 0.05),
        ),  # best in the middle
        ("optimizer", lambda config, rng: {"sgd": 6, "adam": 4, "adamw": 5}[config["optimizer"]] + rng.gauss(0, 0.1)),
        ("dropout", lambda config, rng: 4 + config["dropout"] + rng.gauss(0, 0.05)),
    ],
)
def test_the_field_that_decides_is_found(field: str, losses: Any, seed: int) -> None:
    found = importance(read(sweep(losses, seed=seed)))
    first, second = found.effects[:2]
    assert first.field.name == field
    assert first.share is not None and first.share > 0.65
    assert first.p is not None and first.p < 0.01
    assert second.share is not None and second.share < first.share - 0.2


def test_unimportant_fields_get_small_shares_and_large_p() -> None:
    told = [
        effect
        for seed in range(40)
        for effect in shares(sweep(lambda config, rng: rng.gauss(4, 1), seed=seed)).values()
    ]
    assert sum(effect.p is not None and effect.p < 0.1 for effect in told) / len(told) == pytest.approx(0.1, abs=0.06)
    assert sum(effect.share or 0.0 for effect in told) / len(told) < 0.15


def test_a_monotone_change_of_the_losses_changes_nothing() -> None:
    def losses(config: Any, rng: Any) -> float:
        return 4 + math.log10(config["lr"]) + rng.gauss(0, 0.5)

    summary, stretched = sweep(losses), sweep(lambda config, rng: math.exp(5 * losses(config, rng)))
    assert {n: (e.share, e.p) for n, e in shares(summary).items()} == {
        n: (e.share, e.p) for n, e in shares(stretched).items()
    }


def test_trials_are_compared_at_the_last_rung_that_all_reached() -> None:
    summary = realistic()
    found = importance(read(summary))
    assert (found.step, found.trials, found.failed) == (35, 15, 1)


def test_a_field_of_few_trials_gets_no_share() -> None:
    effects = shares(sweep(lambda config, rng: rng.random(), trials=MIN_TRIALS - 1))
    assert {effect.share for effect in effects.values()} == {None}
    assert "too few" in effects["lr"].note


@settings(deadline=None, max_examples=60)
@given(summaries(), st.integers(0, 3))
def test_any_summary_gives_shares_between_0_and_1_and_the_same_ones_again(summary: dict[str, Any], seed: int) -> None:
    found = importance(read(summary), seed)
    for effect in found.effects:
        assert (effect.share is None) == bool(effect.note)
        assert effect.share is None or 0 <= effect.share <= 1 + 1e-9
        assert effect.p is None or 0 < effect.p <= 1
    assert importance(read(summary), seed) == found
