"""The importance of fields, on made-up sweeps for which it is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.sweep.report.facts import read
from orchestrator.sweep.report.importance import MIN_POINTS, Effect, importance
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
    assert first.p < 0.01 and first.is_certain
    assert second.share is not None and second.share < first.share - 0.2
    assert found.text.startswith(f"{field} {first.share:.0%} (")


def test_where_nothing_matters_no_field_is_said_to() -> None:
    """But in about one sweep of twenty; and the points are said to be too few."""
    found = [importance(read(sweep(lambda config, rng: rng.gauss(4, 1), seed=seed))) for seed in range(60)]
    certain = [any(effect.is_certain for effect in each.effects) for each in found]
    assert sum(certain) <= 5
    first = found[certain.index(False)]
    names = ", ".join(effect.field.short for effect in first.effects)
    assert first.text == f"not enough points to tell of {names}"
    assert all("not enough points to tell (0% to " in effect.text for effect in first.effects)


@pytest.mark.parametrize("trials", [12, 40])
@pytest.mark.parametrize(
    ("field", "losses", "truth"),  # the share in a sweep of 60,000 trials
    [
        ("dropout", lambda config, rng: config["dropout"] + rng.gauss(0, 0.3), 0.49),
        (
            "optimizer",
            lambda config, rng: {"sgd": 0, "adam": 0.5, "adamw": 1}[config["optimizer"]] + rng.gauss(0, 0.3),
            0.67,
        ),
        ("lr", lambda config, rng: rng.gauss(0, 1), 0.0),
    ],
)
def test_the_interval_contains_the_truth_nearly_always(field: str, losses: Any, truth: float, trials: int) -> None:
    found = [shares(sweep(losses, trials=trials, seed=seed))[field] for seed in range(60)]
    assert sum(effect.low <= truth <= effect.high for effect in found) >= 52
    assert sum(effect.high - effect.low for effect in found) / 60 < (0.75 if trials == 12 else 0.45)


def test_a_choice_of_many_values_has_an_interval_too() -> None:
    summary = sweep(lambda config, rng: 0.0, trials=400)
    for number, trial in enumerate(summary["trials"]):
        trial["config"]["optimizer"] = f"o{number % 100}"
        trial["curve"] = [[9, float(number % 100)]]
    effect = shares(summary)["optimizer"]
    assert (effect.share, effect.low, effect.high) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))
    assert effect.is_certain


def test_unimportant_fields_get_small_shares_and_large_p() -> None:
    told = [
        effect
        for seed in range(40)
        for effect in shares(sweep(lambda config, rng: rng.gauss(4, 1), seed=seed)).values()
    ]
    assert sum(effect.p < 0.1 for effect in told) / len(told) == pytest.approx(0.1, abs=0.06)
    assert sum(effect.share or 0.0 for effect in told) / len(told) < 0.15


def test_a_monotone_change_of_the_losses_changes_nothing() -> None:
    def losses(config: Any, rng: Any) -> float:
        return 4 + math.log10(config["lr"]) + rng.gauss(0, 0.5)

    summary, stretched = sweep(losses), sweep(lambda config, rng: math.exp(5 * losses(config, rng)))
    assert {n: (e.share, e.p) for n, e in shares(summary).items()} == {
        n: (e.share, e.p) for n, e in shares(stretched).items()
    }


def repeated(points: int, repeats: int, seed: int) -> dict[str, Any]:
    """A sweep in which no field matters; the trials of a point have the same config and similar losses."""
    rng = random.Random(seed)
    means = sweep(lambda config, _: rng.gauss(4, 1), points, seed)
    told = []
    for trial in means["trials"]:
        for number in range(repeats):
            loss = trial["loss"] + rng.gauss(0, 0.1)
            told.append(trial | {"id": f"{trial['id']}-{number}", "loss": loss, "curve": [[9, loss]]})
    return means | {"trials": told, "points": means["trials"]}


def test_trials_of_one_point_count_once() -> None:
    found = [importance(read(repeated(MIN_POINTS, 3, seed))) for seed in range(40)]
    assert {each.points for each in found} == {MIN_POINTS}
    assert sum(any(effect.is_certain for effect in each.effects) for each in found) <= 4
    few = importance(read(repeated(MIN_POINTS - 1, 3, 1)))
    assert few.text == "" and {effect.share for effect in few.effects} == {None}


def test_trials_are_compared_at_the_last_rung_that_all_reached() -> None:
    summary = realistic()
    found = importance(read(summary))
    assert (found.step, found.points, found.failed) == (35, 15, 1)


def test_a_field_of_few_trials_gets_no_share() -> None:
    effects = shares(sweep(lambda config, rng: rng.random(), trials=MIN_POINTS - 1))
    assert {effect.share for effect in effects.values()} == {None}
    assert "too few" in effects["lr"].note


@settings(deadline=None, max_examples=60)
@given(summaries(), st.integers(0, 3))
def test_any_summary_gives_shares_between_0_and_1_and_the_same_ones_again(summary: dict[str, Any], seed: int) -> None:
    found = importance(read(summary), seed)
    for effect in found.effects:
        assert (effect.share is None) == bool(effect.note)
        assert effect.share is None or 0 <= effect.share <= 1 + 1e-9
        assert 0 <= effect.low <= effect.high <= 1 + 1e-9
        assert 0 < effect.p <= 1
    assert importance(read(summary), seed) == found
