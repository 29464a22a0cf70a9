"""The rules of a sweep's recipe: which fields can be searched, and what must hold between the sweep and its run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import is_free
from orchestrator.config.schema import fields_of, nearest_name
from orchestrator.sweep.schedule.choice import STOPPING
from orchestrator.sweep.space import Domain, Point, Space, counts, in_order
from orchestrator.sweep.spec import Sweep, SweepSpec

MOST_POINTS = 100_000
"""Most points of a grid."""

WEIGHT = "data.sources.N.weight"
"""The field of the data that can be searched: held-out text and vocabulary do not depend on it."""

_MEASURED_OTHERWISE = {  # why the training losses of two values of a field cannot be compared
    "train.global_batch_size": "trials would be compared at the same step after different amounts of text",
    "train.label_smoothing": "it changes what the training loss measures",
    "model.dropout": "the training loss is measured with dropout, the more of it the higher",
    WEIGHT: "the training loss is measured on the mixture, and the easiest text would win",
}

_SAME_FOR_ALL = {  # why a field or section cannot be searched
    "run": "the sweep names its trials",
    "seed": "it decides the batches, which all trials share",
    "storage": "all trials share one storage",
    "store": "all trials share one storage",
    "data": "it decides the batches, which all trials share",
    "train.steps": "trials are compared step by step",
    "eval": "trials are compared step by step",
}


def space_problems(space: Space) -> Iterator[str]:
    """Problems of the searched fields and their domains."""
    known = {field.name for field in fields_of(RunConfig)}
    for name, domain in space.items():
        pattern = _pattern(name)
        fixed = next((each for each in _SAME_FOR_ALL if name == each or name.startswith(each + ".")), None)
        if pattern not in known:
            near = nearest_name(RunConfig, name)
            yield f"space.{name}: there is no such field" + (
                f"; did you mean {near}?" if near else "; see manta schema"
            )
        elif fixed is not None and pattern != WEIGHT:
            yield f"space.{name}: cannot be searched, since {_SAME_FOR_ALL[fixed]}. Put it into `set`, for all trials."
        elif is_free(name):
            yield f"space.{name}: does not change what a run learns. Put it into `set`, for all trials."
        for other, wanted in domain.conditions().items():
            if other not in space:
                yield f"space.{name}.when: {other} is not in the space. There are: {', '.join(space)}."
                continue
            for value in wanted:
                if not space[other].holds(value):
                    yield f"space.{name}.when: {other} is never {value!r}. Its domain is {_shown(space[other])}."
    if all(other in space for domain in space.values() for other in domain.conditions()):
        try:
            in_order(space)
        except ValueError as error:
            yield f"space: {error}."


def point_problems(spec: SweepSpec) -> Iterator[str]:
    """Problems of the points to try first."""
    for index, point in enumerate(spec.searcher.points):
        for problem in misfits(spec.space, point):
            yield f"searcher.points.{index}.{problem}"


def misfits(space: Space, point: Point) -> Iterator[str]:
    """Why a point whose other fields are to be drawn is none of the space; begins with the field."""
    for name, value in point.items():
        if name not in space:
            yield f"{name}: not a field of the space. There are: {', '.join(space)}."
        elif not space[name].holds(value):
            yield f"{name} = {value!r}: not in the space, {_shown(space[name])}."
        elif not all(other in point for other in space[name].conditions()):
            yield f"{name}: is used only with certain values of {', '.join(space[name].conditions())}; give that, too."
        elif not counts(space[name], point):
            yield f"{name}: is not used with the point's other values; leave it out."


def sweep_problems(sweep: Sweep) -> Iterator[str]:
    """Problems between the sweep's fields and those of its run."""
    spec, steps = sweep.spec, sweep.steps
    points = math.prod(len(domain.grid_values()) for domain in spec.space.values())
    if spec.searcher.name == "grid" and points > MOST_POINTS:
        yield f"space: a grid of up to {points:,} points; at most {MOST_POINTS:,}. Use random, or fewer values."
        return
    if spec.searcher.from_ is not None and spec.searcher.name == "grid":
        yield f"searcher.from = {spec.searcher.from_}: not with grid, which tries all of its points anyway."
    elif spec.searcher.from_ == spec.sweep:
        yield f"searcher.from = {spec.sweep}: is this sweep. To continue it, run it again."
    if spec.metric == "train_loss":
        for name in spec.space:
            if reason := _MEASURED_OTHERWISE.get(_pattern(name)):
                yield f"space.{name}: not with metric = train_loss, since {reason}. Use metric: val_loss."
    yield from _weight_problems(sweep)
    every, scheduler = sweep.base.eval.every_steps, spec.scheduler
    if spec.metric == "val_loss" and not sweep.base.data.has_held_out:
        yield "metric = val_loss: no text is held out to evaluate on. Use train_loss, or hold some text out."
    elif spec.metric == "val_loss" and every is None and scheduler.name != "none":
        yield (
            "metric = val_loss: eval.every_steps is null, so trials could not be compared before their end. "
            f"Set it, as in set: {{eval.every_steps: {max(1, steps // 9)}}}, or use train_loss."
        )
    if scheduler.name != "none" and scheduler.grace_steps is not None and scheduler.grace_steps >= steps:
        yield f"scheduler.grace_steps = {scheduler.grace_steps}: not less than a trial's steps, train.steps = {steps}."
    if spec.searcher.repeats > 1 and scheduler.name in ("pbt", *STOPPING):
        yield (
            f"searcher.repeats = {spec.searcher.repeats}: not with {scheduler.name}, which decides on each trial by "
            "itself. Use none, halving, asha, pasha or hyperband."
        )
    if spec.plateau.trials is not None and scheduler.name in ("pbt", "hyperband"):
        yield (
            f"plateau.trials = {spec.plateau.trials}: not with {scheduler.name}, whose trials have no first rung in "
            "common after which others begin. Use none, halving, asha or pasha."
        )
    elif (spec.plateau.trials or 0) >= sweep.points:
        yield f"plateau.trials = {spec.plateau.trials}: not less than the number of points, {sweep.points}."
    if scheduler.name == "pbt" and sweep.points < 2:
        yield f"searcher.trials = {sweep.points}: pbt copies the state of one trial to another; at least 2."
    if scheduler.name == "pbt" and spec.searcher.name == "optuna":
        yield "searcher.name = optuna: pbt starts all trials at once and changes their values; use random or grid."


def _weight_problems(sweep: Sweep) -> Iterator[str]:
    trained_on, sources = sweep.base.data.sources_of("train"), sweep.base.data.sources
    for name in sweep.spec.space:
        if _pattern(name) != WEIGHT:
            continue
        index = int(name.split(".")[2])
        if index >= len(sources):
            yield f"space.{name}: there are {len(sources)} sources, from 0."
        elif index not in trained_on:
            yield f"space.{name}: all of the source's documents are held out, so its weight changes nothing."
        elif len(trained_on) == 1:
            yield f"space.{name}: no other source is trained on, so its weight changes nothing."


def _pattern(name: str) -> str:
    """The name with N in place of an index, as `fields_of` gives it."""
    return ".".join("N" if part.isdecimal() else part for part in name.split("."))


def _shown(domain: Domain) -> str:
    return str(list(domain.values)) if domain.values is not None else f"{domain.kind} {list(domain.bounds or ())}"
