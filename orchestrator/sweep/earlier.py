"""What a sweep takes over from an earlier one: the best points, and results where they are comparable.

It is written into the sweep's record before the first trial and read from there ever after, so that the sweep stays a
function of its own records, whatever becomes of the earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from data.errors import InputError
from data.stores.open import open_store
from data.stores.store import Store
from orchestrator.config.result_fields import differing_fields
from orchestrator.run.fence import Fence
from orchestrator.run.record import RunRecord, load_record
from orchestrator.sweep.claim import with_present_schedulers
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.rules import misfits
from orchestrator.sweep.schedule.choice import schedule_of
from orchestrator.sweep.schedule.legs import loss_at
from orchestrator.sweep.schedule.repeated import points_of
from orchestrator.sweep.space import Point, counts, plain
from orchestrator.sweep.spec import Earlier, Sweep

BEST_POINTS = 4
"""Most points of the earlier sweep that are tried first."""

EARLIER = "earlier"
"""Name of what was taken over, in the `result` of the sweep's record."""

_COMPARED = ("metric", "window", "searcher.repeats")


def take_over(sweep: Sweep, root: Store, fence: Fence, book: TrialBook, log: Callable[[str], None]) -> Sweep:
    """The sweep with what it takes over by `searcher.from`, which is written into its record if it has no trial yet.

    Args:
        root: the storage of the sweep's runs.
        fence: of the sweep, whose data are prepared.

    Raises:
        InputError: there is no such earlier sweep.
    """
    if sweep.spec.searcher.from_ is None:
        return sweep
    if not len(book):
        taken = _taken_from(sweep, earlier_store(sweep, root), fence.record)
        fence.add_result({EARLIER: taken})
        results = f"; {taken['why_no_results']}" if taken["why_no_results"] else ""
        log(
            f"from sweep {sweep.spec.searcher.from_}: {len(taken['points'])} points are tried first, "
            f"{len(taken['results'])} results are known to the searcher{results}"
        )
    taken = fence.record.result[EARLIER]
    return replace(sweep, earlier=Earlier(tuple(taken["points"]), tuple(map(tuple, taken["results"]))))


def earlier_store(sweep: Sweep, root: Store) -> Store:
    """The folder of the earlier sweep.

    Raises:
        InputError: there is no sweep in it.
    """
    name = str(sweep.spec.searcher.from_)
    store = open_store(name, sweep.base.store) if "/" in name else root.child(f"sweeps/{name}")
    if store.head(RECORD) is None:
        raise InputError(
            f"searcher.from = {name}: there is no sweep at {store.url_of('')}. Give the name of a sweep in this "
            "storage, or the URL of its folder, such as s3://bucket/storage/sweeps/NAME."
        )
    return store


def _taken_from(sweep: Sweep, store: Store, own: RunRecord) -> dict[str, Any]:
    record, level = load_record(store, RECORD), schedule_of(sweep).levels[0]
    present = sweep.result_fields()
    fields = with_present_schedulers(record.result_fields, present)
    points = points_of(TrialBook(store).by_number, int(fields["searcher.repeats"]))
    whole = [each for each in points.values() if len(each.trial_runs) == 1]  # a trial of pbt has had several points
    fitting = [each for each in whole if each.loss is not None and _fits(sweep, each.point)]
    best = sorted(
        (each for each in fitting if each.status != "failed"),
        key=lambda each: (-each.reports[-1].step, each.loss, each.number),
    )
    tried = {plain(each.point): each.point for each in best}
    why = _difference(fields, present) or ("its data are others" if _pins(record) != _pins(own) else "")
    results = [
        [each.point, loss]
        for each in fitting
        if not why and (loss := loss_at(each, level)) is not None and _is_complete(sweep, each.point)
    ]
    if not why and not results:
        why = f"none of its trials has a loss at step {level} and all fields of the space"
    return {"points": list(tried.values())[:BEST_POINTS], "results": results, "why_no_results": why}


def _fits(sweep: Sweep, point: Point) -> bool:
    return not any(misfits(sweep.spec.space, point)) and not sweep.problems_of(point)


def _is_complete(sweep: Sweep, point: Point) -> bool:
    space = sweep.spec.space
    return all(name in point for name in space if counts(space[name], point))


def _difference(earlier: dict[str, Any], present: dict[str, Any]) -> str:
    """The first field that makes losses of the two sweeps incomparable; "" if there is none."""

    def compared(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name in _COMPARED or name.startswith("run.")}

    changes = differing_fields(compared(earlier), compared(present))
    return next((f"{name.removeprefix('run.')} was {old!r}, and is {new!r} now" for name, old, new in changes), "")


def _pins(record: RunRecord) -> str:
    return json.dumps(asdict(record.pins), sort_keys=True, default=str)
