"""Domains of fields, and which fields a trial uses."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.sweep.space import Domain, counts, draw, extreme_points, grid, in_order, perturbed, plain

SPACE = {
    "momentum": Domain(uniform=(0.0, 0.95), when={"name": "sgd"}),
    "name": Domain(choice=("sgd", "adam", "adamw")),
    "lr": Domain(loguniform=(1e-4, 1e-1)),
    "layers": Domain(int=(2, 6)),
    "decay": Domain(choice=(0.0, 0.1), when={"name": ["adam", "adamw"]}),
}


@given(st.integers(0, 10_000))
def test_a_drawn_point_is_in_the_space_and_has_only_used_fields(seed: int) -> None:
    point = draw(SPACE, random.Random(seed))
    assert all(SPACE[name].holds(value) for name, value in point.items())
    assert ("momentum" in point) == (point["name"] == "sgd")
    assert ("decay" in point) == (point["name"] != "sgd")
    assert draw(SPACE, random.Random(seed)) == point


@given(st.integers(0, 10_000), st.sampled_from(["sgd", "adam", "adamw"]))
def test_a_fixed_field_changes_no_other(seed: int, name: str) -> None:
    free, fixed = draw(SPACE, random.Random(seed)), draw(SPACE, random.Random(seed), {"name": name})
    assert fixed["name"] == name
    assert (fixed["lr"], fixed["layers"]) == (free["lr"], free["layers"])


@given(st.integers(0, 10_000))
def test_a_perturbed_point_stays_in_the_space_and_keeps_the_other_fields(seed: int) -> None:
    rng = random.Random(seed)
    point = draw(SPACE, rng)
    moved = perturbed(SPACE, point, ["lr", "momentum", "decay"], rng, resample=0.3)
    assert moved.keys() == point.keys()
    assert all(SPACE[name].holds(value) for name, value in moved.items())
    assert (moved["name"], moved["layers"]) == (point["name"], point["layers"])


def test_a_log_range_is_drawn_evenly_by_magnitude() -> None:
    rng = random.Random(0)
    drawn = [Domain(loguniform=(1e-4, 1e-1)).draw(rng) for _ in range(3000)]
    for low in (1e-4, 1e-3, 1e-2):
        assert sum(low <= value < 10 * low for value in drawn) / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_a_grid_has_every_point_once_whatever_fields_are_unused() -> None:
    space = {"name": Domain(choice=("sgd", "adam")), "momentum": Domain(grid=(0.0, 0.9), when={"name": "sgd"})}
    assert grid(space) == [{"name": "sgd", "momentum": 0.0}, {"name": "sgd", "momentum": 0.9}, {"name": "adam"}]


def test_extremes_hold_every_choice_and_both_ends_even_where_there_are_too_many_combinations() -> None:
    for at_most in (1000, 20):
        points = extreme_points(SPACE, at_most)
        for name, domain in SPACE.items():
            found = {str(point[name]) for point in points if name in point}
            assert found >= ({str(value) for value in domain.extremes()} if not domain.conditions() else set())


def test_fields_come_after_those_they_depend_on() -> None:
    order = in_order(SPACE)
    assert order.index("momentum") > order.index("name") < order.index("decay")
    circle = {"a": Domain(choice=(1,), when={"b": 1}), "b": Domain(choice=(1,), when={"a": 1})}
    with pytest.raises(ValueError, match="depend on each other"):
        in_order(circle)


def test_counts_takes_one_value_or_several() -> None:
    assert counts(SPACE["momentum"], {"name": "sgd"})
    assert counts(SPACE["decay"], {"name": "adamw"})
    assert not counts(SPACE["decay"], {"name": "sgd"})
    assert not counts(SPACE["decay"], {})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "nothing given"),
        ({"choice": [1], "uniform": [0, 1]}, "choice and uniform given"),
        ({"uniform": [2, 1]}, "the first is above the second"),
        ({"loguniform": [0, 1]}, "above 0"),
        ({"uniform": [0, float("inf")]}, "finite"),
        ({"choice": []}, "at least 1 item"),
    ],
)
def test_an_invalid_domain_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Domain.model_validate(fields)


def test_a_grid_of_thousands_of_points_is_no_list_of_comparisons() -> None:
    space = {str(number): Domain(uniform=(0.0, 1.0)) for number in range(6)}
    assert len({tuple(point.values()) for point in grid(space)}) == len(grid(space)) == 5**6


def test_values_are_compared_as_what_they_mean() -> None:
    assert plain({"b": [0.9, 0.95], "a": 1}) == plain({"a": 1, "b": (0.9, 0.95)})
    assert len({plain([0.9]), plain((0.9,)), plain([0.8])}) == 2
