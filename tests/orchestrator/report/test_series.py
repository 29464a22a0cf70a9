"""Thinned and smoothed curves keep their extremes and ends."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.series import BUCKETS, Point, band, outline, smoothed, window

no_deadline = settings(deadline=None)
curves = st.lists(st.floats(-1e6, 1e6), max_size=400).map(lambda values: [(float(n), v) for n, v in enumerate(values)])
buckets = st.integers(1, 40)


@no_deadline
@given(curves, buckets)
def test_an_outline_has_the_ends_and_the_extremes_of_the_curve_in_its_order(curve: list[Point], count: int) -> None:
    kept = outline(curve, count)
    assert len(kept) <= 2 * count + 2
    assert kept == [point for point in curve if point in set(kept)]
    if curve:
        values = [value for _, value in curve]
        assert (kept[0], kept[-1]) == (curve[0], curve[-1])
        assert {min(values), max(values)} <= {value for _, value in kept}


@no_deadline
@given(curves, buckets)
def test_a_band_holds_every_point(curve: list[Point], count: int) -> None:
    found = band(curve, count)
    assert bool(found) == (len(curve) > 2 * count)
    if found:
        assert len(found) == count
        assert min(low for _, low, _ in found) == min(value for _, value in curve)
        assert max(high for _, _, high in found) == max(value for _, value in curve)
        assert [at for at, _, _ in found] == sorted(at for at, _, _ in found)


def test_millions_of_points_are_some_hundreds() -> None:
    curve = [(float(n), math.sin(n)) for n in range(300_000)]
    curve[123_456] = (123_456.0, 50.0)
    assert len(outline(curve)) <= 2 * BUCKETS + 2 and (123_456.0, 50.0) in outline(curve)
    assert len(smoothed(curve)) <= 2 * BUCKETS + 1


@no_deadline
@given(curves)
def test_means_lie_within_the_curve_and_have_its_ends(curve: list[Point]) -> None:
    means = smoothed(curve)
    assert [at for at, _ in means] == sorted({at for at, _ in means})
    if curve:
        values = [value for _, value in curve]
        room = 1e-9 * max(1.0, *map(abs, values)) * len(values)
        assert all(min(values) - room <= mean <= max(values) + room for _, mean in means)
        assert means[0] == curve[0] and means[-1][0] == curve[-1][0]


def test_a_mean_is_that_of_the_window_around_it() -> None:
    curve = [(float(n), float(n * n % 17)) for n in range(250)]
    assert window(250) == 5
    means = dict(smoothed(curve, most=250))
    assert means[100.0] == pytest.approx(fmean(value for _, value in curve[98:103]))
    assert means[1.0] == pytest.approx(fmean(value for _, value in curve[0:3]))
    assert means[249.0] == pytest.approx(fmean(value for _, value in curve[247:250]))


def test_means_are_weighted() -> None:
    curve = [(float(n), 10.0 if n % 2 else 1000.0) for n in range(250)]
    weights = [9.0 if n % 2 else 1.0 for n in range(250)]
    mean = dict(smoothed(curve, weights))[101.0]
    # Steps 99, 101 and 103 with weight 9, 100 and 102 with weight 1.
    assert mean == pytest.approx((3 * 9 * 10 + 2 * 1000) / (3 * 9 + 2))
