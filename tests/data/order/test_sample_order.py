"""The order of samples against a reference that iterates over it, and its properties."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.feed.spec import micro_batches_of_rank
from data.order.sample_order import MIXTURE_PERIOD, UNKNOWN, CountsUnknownError, SampleOrder, Samples, shuffled
from tests.data.order.order_reference import (
    Case,
    Row,
    reference_quotas,
    reference_shuffle,
    rows_of,
    sample_order,
    split_mix_64,
)

quick = settings(deadline=None, max_examples=15)


@st.composite
def cases(draw: st.DrawFn, max_sources: int = 3) -> Case:
    sizes = draw(
        st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any), min_size=1, max_size=max_sources)
    )
    weights = draw(st.lists(st.integers(1, 30), min_size=len(sizes), max_size=len(sizes)))
    return Case(draw(st.integers(0, 2**64 - 1)), sizes, weights, draw(st.integers(1, 8)))


def filling_in(order: SampleOrder, first: int, count: int, truth: np.ndarray, known: np.ndarray) -> Samples:
    """`order.samples`, with the counts it needs filled in one unit at a time; `known` is updated."""
    while True:
        try:
            return order.samples(first, count, known)
        except CountsUnknownError as unknown:
            assert (known[unknown.units] == UNKNOWN).all()
            known[unknown.units[0]] = truth[unknown.units[0]]


def test_the_reference_draws_what_splitmix64_draws() -> None:
    # Vigna's splitmix64.c from seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert list(itertools.islice(split_mix_64(1234567), 4)) == published


@quick
@given(st.integers(0, 300), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_shuffled_is_the_reference_shuffle(count: int, key: list[int]) -> None:
    permutation = shuffled(count, *key)
    assert permutation.dtype == np.int64
    assert permutation.tolist() == reference_shuffle(range(count), *key)


@quick
@given(cases(), st.integers(0, 2500), st.integers(1, 400))
def test_samples_are_those_of_the_reference(case: Case, first: int, count: int) -> None:
    assert rows_of(case.order().samples(first, count, case.counts)) == case.line(first, count)


@quick
@given(cases(), st.lists(st.tuples(st.integers(0, 1300), st.integers(1, 200)), min_size=1, max_size=4))
def test_any_range_is_a_slice_of_the_whole_order(case: Case, ranges: list[tuple[int, int]]) -> None:
    whole = rows_of(case.order().samples(0, 1500, case.counts))
    order = case.order()  # one object for all queries, so that its caches are tested too
    for first, count in ranges:
        assert rows_of(order.samples(first, count, case.counts)) == whole[first : first + count]


@quick
@given(cases(), st.integers(2, 4))
def test_every_epoch_of_a_source_holds_each_sequence_once(case: Case, epochs: int) -> None:
    rows = rows_of(case.order().samples(0, 600, case.counts))
    for source, units in enumerate(case.source_units()):
        everything = sorted((unit, index) for unit in units for index in range(case.counts[unit]))
        mine = [row for row in rows if row[0] == source]
        for epoch in range(min(epochs, len(mine) // len(everything))):
            inside = mine[epoch * len(everything) : (epoch + 1) * len(everything)]
            assert {row[1] for row in inside} == {epoch}
            assert sorted(row[2:] for row in inside) == everything


@quick
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 5))
def test_mixture_is_exact_in_every_period_and_always_the_same(seed: int, weights: list[int], period: int) -> None:
    units = [range(source, source + 1) for source in range(len(weights))]
    order = sample_order(*units, seed=seed, weights=weights)
    sources, positions = order.mixture(period * MIXTURE_PERIOD, MIXTURE_PERIOD)
    assert [Counter(sources.tolist())[source] for source in range(len(weights))] == reference_quotas(weights)
    again = sample_order(*units, seed=seed, weights=weights).mixture(period * MIXTURE_PERIOD, MIXTURE_PERIOD)
    assert [column.tolist() for column in again] == [sources.tolist(), positions.tolist()]
    for source in range(len(weights)):  # each source continues where the period before ended
        begin = period * reference_quotas(weights)[source]
        mine = positions[sources == source].tolist()
        assert mine == list(range(begin, begin + len(mine)))


@quick
@given(cases(), st.integers(0, 60), st.integers(1, 120))
def test_no_result_depends_on_an_unknown_count(case: Case, first: int, count: int) -> None:
    known = np.full(len(case.counts), UNKNOWN)
    lazily = filling_in(case.order(), first, count, case.counts, known)
    assert rows_of(lazily) == case.line(first, count)
    # The counts of units that were not requested do not change the result.
    for other in (0, 1, 7):
        guess = np.where(known == UNKNOWN, other, known)
        if all(guess[units.start : units.stop].any() for units in case.source_units()):
            assert rows_of(case.order().samples(first, count, guess)) == rows_of(lazily)


@quick
@given(cases(max_sources=1), st.data())
def test_a_position_needs_the_counts_up_to_it_and_requests_one_window(case: Case, data: st.DataObject) -> None:
    order = case.order()
    units = reference_shuffle(list(case.source_units()[0]), 1, case.seed, 0, 0)
    windows = [units[start : start + case.shuffle_units] for start in range(0, len(units), case.shuffle_units)]
    total = int(case.counts.sum())
    position = data.draw(st.integers(0, total - 1))
    ends = list(itertools.accumulate(int(case.counts[window].sum()) for window in windows))
    place = next(number for number, end in enumerate(ends) if position < end)

    known = np.full(len(units), UNKNOWN)
    for number, window in enumerate(windows[: place + 1]):
        with pytest.raises(CountsUnknownError) as unknown:
            order.locate(0, position, known)
        assert sorted(unknown.value.units.tolist()) == sorted(window)
        assert order.windows_at(position, known) == [(0, number)]
        known[window] = case.counts[window]
    before = ends[place - 1] if place else 0
    assert order.locate(0, position, known) == (0, place, position - before)
    assert order.windows_at(position, known) == [(0, place)]


@quick
@given(cases(max_sources=1), st.integers(0, 200))
def test_later_epochs_are_found_by_arithmetic(case: Case, position: int) -> None:
    order, total = case.order(), int(case.counts.sum())
    position += 1000 * total
    located = order.locate(0, position, case.counts)
    epoch, inside = divmod(position, total)
    assert located.epoch == epoch
    sizes = [int(case.counts[order.window_units(0, epoch, window)].sum()) for window in range(located.window)]
    assert sum(sizes) + located.offset == inside
    assert 0 <= located.offset < int(case.counts[order.window_units(0, epoch, located.window)].sum())


@quick
@given(cases(), st.integers(0, 20))
def test_windows_partition_an_epochs_units_and_hold_nothing_else(case: Case, epoch: int) -> None:
    order = case.order()
    for source, units in enumerate(case.source_units()):
        seen: list[int] = []
        for window in range(order.num_windows(source)):
            inside = order.window_units(source, epoch, window).tolist()
            assert len(inside) == case.shuffle_units or window == order.num_windows(source) - 1
            rows = list(
                zip(*(column.tolist() for column in order.window(source, epoch, window, case.counts)), strict=True)
            )
            assert sorted(rows) == sorted((unit, index) for unit in inside for index in range(case.counts[unit]))
            seen += inside
        assert sorted(seen) == list(units)


@quick
@given(cases(), st.integers(0, 500))
def test_reading_ahead_reaches_every_window_in_its_turn(case: Case, sample: int) -> None:
    order = case.order()
    start = order.windows_at(sample, case.counts)
    planned = list(itertools.islice(order.upcoming_windows(start), 40))
    for source, units in enumerate(case.source_units()):
        mine = [window.tolist() for window in planned if window[0] in units]
        epoch, window = start[source]
        following = (
            reference_shuffle(list(units), 1, case.seed, source, epoch + number // order.num_windows(source))[
                (number % order.num_windows(source)) * case.shuffle_units :
            ][: case.shuffle_units]
            for number in itertools.count(window)
        )
        assert mine == list(itertools.islice(following, len(mine)))
        assert mine or max(case.weights) > 5 * case.weights[source]


@quick
@given(cases(max_sources=2), st.integers(1, 6), st.integers(1, 4), st.data())
def test_no_schedule_of_resizes_changes_the_order(
    case: Case, micro_batches: int, micro_batch_size: int, data: st.DataObject
) -> None:
    """For any world size at each step, the ranks' micro-batches joined are those of a single rank."""
    world_sizes = data.draw(st.lists(st.integers(1, micro_batches), min_size=1, max_size=12))
    orders = [case.order() for _ in range(micro_batches)]  # ranks share nothing
    joined: list[Row] = []
    for step, world_size in enumerate(world_sizes):
        slots: dict[int, list[Row]] = {}
        for rank in range(world_size):
            mine = micro_batches_of_rank(micro_batches, rank, world_size)
            assert len(mine) in (micro_batches // world_size, -(-micro_batches // world_size))
            for slot in mine:
                assert slot not in slots
                first = (step * micro_batches + slot) * micro_batch_size
                slots[slot] = rows_of(orders[rank].samples(first, micro_batch_size, case.counts))
        joined += [row for slot in sorted(slots) for row in slots[slot]]
    assert joined == case.line(0, len(world_sizes) * micro_batches * micro_batch_size)


def test_more_ranks_than_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="world_size=5 exceeds micro_batches_per_step=4"):
        micro_batches_of_rank(4, 0, 5)


@pytest.mark.parametrize("change", [{"seed": 8}, {"seed": 7 + 2**32}])
def test_another_seed_is_another_order(change: dict[str, int]) -> None:
    case = Case(7, [[5] * 8, [4] * 6], [3, 2], 3)
    other = case._replace(**change)
    ours, theirs = (rows_of(each.order().samples(0, 500, case.counts)) for each in (case, other))
    moved = sum(a != b for a, b in zip(ours, theirs, strict=True))
    assert moved > 300


def test_epochs_windows_and_mixture_are_shuffled_anew_each_time() -> None:
    order = Case(7, [[5] * 40], [1], 40).order()
    counts = np.full(40, 5)
    assert order.epoch_units(0, 0).tolist() != order.epoch_units(0, 1).tolist()
    rows = [order.window(0, epoch, 0, counts) for epoch in (0, 1)]
    assert list(zip(*rows[0], strict=True)) != list(zip(*rows[1], strict=True))
    mixed = sample_order(range(1), range(1, 2), seed=7)
    assert mixed.mixture(0, 1000)[0].tolist() != mixed.mixture(1000, 1000)[0].tolist()


def test_the_order_is_pinned_by_literals() -> None:
    """Literals detect any change of the function, which would change the result of every run."""
    assert shuffled(12, 1, 2, 3).tolist() == GOLDEN_PERMUTATION
    order = sample_order(range(0, 4), range(4, 6), seed=42, weights=[2, 1], shuffle_units=2)
    assert rows_of(order.samples(0, 8, np.array([3, 0, 2, 4, 1, 2]))) == GOLDEN_START
    assert rows_of(order.samples(123_456, 4, np.array([3, 0, 2, 4, 1, 2]))) == GOLDEN_LATER


GOLDEN_PERMUTATION = [4, 11, 10, 6, 2, 0, 1, 3, 5, 8, 7, 9]
GOLDEN_START = [
    (0, 0, 0, 1),
    (0, 0, 3, 0),
    (0, 0, 3, 1),
    (0, 0, 3, 2),
    (0, 0, 0, 2),
    (0, 0, 0, 0),
    (1, 0, 4, 0),
    (0, 0, 3, 3),
]
GOLDEN_LATER = [(1, 13705, 5, 0), (1, 13705, 5, 1), (0, 9148, 0, 2), (0, 9149, 3, 2)]


@quick
@given(cases())
def test_ids_are_unique_and_contain_epoch_and_unit(case: Case) -> None:
    samples = case.order().samples(0, 600, case.counts)
    ids = samples.ids()
    assert ids.dtype == np.int64 and (ids >= 0).all()
    assert len(set(ids.tolist())) == len(set(zip(*(column.tolist() for column in samples[1:]), strict=True)))
    assert len(set(ids.tolist())) == len(set(rows_of(samples))) == 600


def single(epoch: int = 0, unit: int = 0, index: int = 0) -> Samples:
    return Samples(*(np.array([value], np.int64) for value in (0, epoch, unit, index)))


LIMITS = {"epoch": 2**14, "unit": 2**25, "index": 2**24}


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_that_do_not_fit_an_id_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"{LIMITS[name]} does not fit a sample id, the limit is {LIMITS[name]}"):
        single(**{name: LIMITS[name]}).ids()


def test_the_largest_ids_are_positive_and_distinct() -> None:
    extremes = [
        single(*values).ids()[0] for values in itertools.product(*((0, limit - 1) for limit in LIMITS.values()))
    ]
    assert len(set(extremes)) == 8 and min(extremes) == 0


def test_no_samples_have_no_ids() -> None:
    empty = np.empty(0, np.int64)
    assert len(Samples(empty, empty, empty, empty).ids()) == 0


def test_a_source_without_a_sequence_is_refused_once_that_is_known() -> None:
    order = sample_order(range(0, 2), range(2, 4))
    counts = np.array([1, 2, 0, UNKNOWN])
    with pytest.raises(CountsUnknownError) as unknown:
        order.samples(0, 50, counts)
    assert unknown.value.units.tolist() == [3]
    counts[3] = 0
    with pytest.raises(InputError, match="Source 1 has no training sequence"):
        order.samples(0, 50, counts)


def test_units_without_a_sequence_are_passed_over() -> None:
    order = sample_order(range(6), seed=3)
    counts = np.array([0, 2, 0, 0, 1, 0])
    rows = rows_of(order.samples(0, 9, counts))
    for epoch in range(3):
        assert sorted(rows[3 * epoch : 3 * epoch + 3]) == [(0, epoch, 1, 0), (0, epoch, 1, 1), (0, epoch, 4, 0)]


@pytest.mark.parametrize("weights", [[1, 2500], [3000, 1, 4000], [1.0, 1e9]])
def test_a_weight_that_would_never_be_read_is_refused(weights: list[float]) -> None:
    small = weights.index(min(weights))
    with pytest.raises(InputError, match=rf"data\.sources\.{small}\.weight=.*would never be read"):
        sample_order(*(range(source, source + 1) for source in range(len(weights))), weights=weights)


@quick
@given(cases(max_sources=1), st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_adding_a_source_moves_no_sample_within_another(case: Case, other: list[int]) -> None:
    """The order within a source depends on its seed, units and counts, not on other sources."""
    assume(any(other))
    both = case._replace(sizes=[*case.sizes, other], weights=[*case.weights, case.weights[0]])
    alone = rows_of(case.order().samples(0, 150, case.counts))
    beside = [row for row in rows_of(both.order().samples(0, 300, both.counts)) if row[0] == 0]
    common = min(len(alone), len(beside))
    assert common > 0 and beside[:common] == alone[:common]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1023, 1024])
def test_shuffled_is_a_permutation_at_every_power_of_two(count: int) -> None:
    assert sorted(shuffled(count, 5).tolist()) == list(range(count))


def test_every_unit_comes_first_equally_often() -> None:
    """Of 8 units each comes first in about an eighth of the epochs: chi-square, 7 degrees of freedom."""
    epochs = 4000
    firsts = Counter(int(shuffled(8, 1, 0, 0, epoch)[0]) for epoch in range(epochs))
    chi_square = sum((firsts[unit] - epochs / 8) ** 2 / (epochs / 8) for unit in range(8))
    assert chi_square < 24.3  # p = 0.001; the hash is fixed, so the result is deterministic


@pytest.mark.parametrize(
    "ask", [lambda order, counts: order.samples(0, 8, counts), lambda order, counts: order.locate(0, 5, counts)]
)
def test_queries_change_no_counts(ask: Callable[[SampleOrder, np.ndarray], object]) -> None:
    counts = np.array([3, 4, UNKNOWN, 2])
    before = counts.copy()
    order = sample_order(range(4), seed=1)
    with contextlib.suppress(CountsUnknownError):
        ask(order, counts)
    assert (counts == before).all()
