"""The point of a new trial, and of one that continues from another's state: drawn until the recipe's rules allow it."""

from __future__ import annotations

import random

from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.schedule.legs import is_lost, loss_at
from orchestrator.sweep.schedule.repeated import point_of, points_of, trials_of
from orchestrator.sweep.space import Point, on_the_grid, perturbed, plain
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.suggest import STARTUP_TRIALS, Result, suggest
from orchestrator.sweep.trial_record import DRAWN, TrialRecord, TrialRun

DRAWS = 200
"""Draws of a point, of which one has to fit the recipe's rules."""

REFUSED_KEPT = 10
"""Refused points that are kept in the record of a trial."""

_STRUCTURE = (
    "model.",
    "train.optimizer.name",
    "train.optimizer.momentum",  # decides whether torch's rmsprop has a momentum buffer
    "train.ema_decay",
    "train.global_batch_size",
    "train.micro_batch_size",
    "data.",
)
"""Prefixes of fields that a trial takes from its donor unchanged: the donor's tensors and data position need them."""


def new_trial(sweep: Sweep, number: int, book: TrialBook, levels: list[int]) -> TrialRecord:
    """The record of a new trial; its status is "failed" where no point was found that the recipe's rules allow."""
    repeats = sweep.spec.searcher.repeats
    place = point_of(number, repeats)
    if (first := book.by_number.get(trials_of(place, repeats)[0])) is not None:
        return _repeated(sweep, number, first)
    record = TrialRecord(number, [], given=_next_given(sweep, book))
    run = f"{sweep.name}-{record.id}"
    known, reason = known_results(sweep, place, book, levels), ""
    for draw in range(DRAWS):
        assert record.given is not None
        point = suggest(sweep, place, known, record.given, draw)
        if not (problems := sweep.problems_of(point)):
            record.trial_runs.append(TrialRun(run, point))
            return record
        reason = " ".join(problems)
        record.refused = [*record.refused, {"point": point, "reason": reason}][-REFUSED_KEPT:]
        if sweep.spec.searcher.name == "grid":
            break
    record.trial_runs.append(TrialRun(run, point))
    record.end("failed", f"refused by the recipe's rules: {reason}")
    return record


def _repeated(sweep: Sweep, number: int, first: TrialRecord) -> TrialRecord:
    """The record of another trial of a point, refused where the first one was."""
    record = TrialRecord(number, [], given=first.given)
    record.trial_runs.append(TrialRun(f"{sweep.name}-{record.id}", dict(first.trial_runs[0].point)))
    if first.status == "failed" and first.started_at is None:
        record.end("failed", first.reason)
    return record


def continued_point(sweep: Sweep, record: TrialRecord, donor: Point) -> Point:
    """The donor's point with the fields changed that may change under its state; the donor's own if none fits."""
    spec = sweep.spec
    names = [name for name in spec.space if not name.startswith(_STRUCTURE)]
    rng = random.Random(f"{spec.searcher.seed}/{record.number}/{len(record.trial_runs)}")
    for _ in range(DRAWS):
        point = perturbed(spec.space, donor, names, rng, spec.scheduler.resample)
        if not sweep.problems_of(point):
            return point
    return dict(donor)


def is_held_back(sweep: Sweep, number: int, book: TrialBook, levels: list[int]) -> bool:
    """Whether the searcher has to know results that are not there yet to draw the point of trial `number`."""
    repeats = sweep.spec.searcher.repeats
    learned = _learned_from(sweep, point_of(number, repeats))
    points = points_of(book.by_number, repeats) if learned else {}
    return not all(place in points and _is_known(points[place], levels) for place in range(1, 1 + learned))


def known_results(sweep: Sweep, place: int, book: TrialBook, levels: list[int]) -> list[Result]:
    """What the searcher may know: equal however many trials run at once, so that it draws the same points.

    These are the losses of the points before the batch at the first step at which they are compared, after those of an
    earlier sweep.

    Args:
        place: number of the point that is drawn, from 1.
    """
    learned = _learned_from(sweep, place)
    results = [Result(*each) for each in sweep.earlier.results]
    for number, record in points_of(book.by_number, sweep.spec.searcher.repeats).items():
        if number <= learned:
            loss = _first_loss(record, levels)
            # One that fails beyond that step has, elsewhere, not failed yet.
            results.append(Result(record.trial_runs[0].point, loss, is_lost(record) and loss is None))
        elif number < place:
            results.append(Result(record.trial_runs[0].point))
    return results


def _is_known(record: TrialRecord, levels: list[int]) -> bool:
    return record.has_ended or _first_loss(record, levels) is not None


def _first_loss(record: TrialRecord, levels: list[int]) -> float | None:
    """The loss at the first level that the trial has reported at; a stopped trial's last one."""
    found = next((loss for level in levels if (loss := loss_at(record, level)) is not None), None)
    return record.loss if found is None and record.has_ended and not is_lost(record) else found


def _learned_from(sweep: Sweep, place: int) -> int:
    """Number of the first points on whose results the point at `place` depends."""
    searcher = sweep.spec.searcher
    if searcher.name != "optuna" or place <= STARTUP_TRIALS:
        return 0
    return place - 1 - (place - 1 - STARTUP_TRIALS) % searcher.batch


def _next_given(sweep: Sweep, book: TrialBook) -> int:
    """Index of the first of the given points that no trial has taken; DRAWN if all are taken."""
    taken = {record.number - 1 if record.given is None else record.given for record in book}
    points = sweep.given_points
    if sweep.spec.searcher.name == "grid":  # each point once
        tried = {plain(record.trial_runs[0].point) for record in book}
        taken |= {index for index, point in enumerate(points) if plain(on_the_grid(sweep.spec.space, point)) in tried}
    return next((index for index in range(len(points)) if index not in taken), DRAWN)
