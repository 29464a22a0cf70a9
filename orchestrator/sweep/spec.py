"""The recipe of a sweep: which run, searched over what, how, and when a trial is stopped. Checked whole at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from data.section import Section
from orchestrator.config.load import config_from
from orchestrator.config.problems import field_problems, listed
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import apply_overrides, assign, read_recipe
from orchestrator.config.renamed import rename_fields, with_new_names
from orchestrator.config.result_fields import flatten, is_free
from orchestrator.config.schema import fields_of, nearest_name
from orchestrator.errors import RecipeError
from orchestrator.sweep.space import Domain, Point, Space, counts, extreme_points, grid, in_order

COMBINATIONS = 1024
"""Corners of the space that are tried as recipes before anything runs."""

_SAME_FOR_ALL = {
    "run": "trials are named by the sweep",
    "seed": "it decides the batches, which all trials share",
    "storage": "all trials are kept in one place",
    "store": "all trials are kept in one place",
    "data": "it decides the batches, which all trials share",
    "train.steps": "trials are compared step by step",
    "eval": "trials are compared step by step",
}


class SearcherConfig(Section):
    """Which points are tried."""

    name: Literal["grid", "random", "optuna"] = Field(
        "optuna", description="grid goes through all, random draws, optuna (TPE) learns from the trials before."
    )
    trials: int | None = Field(None, ge=1, description="Trials in all; null: the whole grid, or 16.")
    seed: int = Field(0, ge=0, description="Seed of what is drawn.")
    points: tuple[dict[str, Any], ...] = Field((), description="Points to try first; fields left out are drawn.")


class SchedulerConfig(Section):
    """When a trial is stopped before its end."""

    name: Literal["none", "asha", "hyperband", "median", "pbt"] = Field(
        "asha",
        description="none: never; asha: at each rung the best 1/factor go on; hyperband: asha in several brackets; "
        "median: below the median of the others; pbt: the worst go on from the best ones' state, with other values.",
    )
    grace_steps: int | None = Field(
        None,
        ge=1,
        description="Steps before which no trial is stopped; null: a ninth of the run, or a twelfth for pbt.",
    )
    factor: float = Field(4.0, gt=1, allow_inf_nan=False, description="asha, hyperband: one in so many goes on.")
    brackets: int = Field(3, ge=1, description="hyperband: brackets, each with another first rung.")
    min_trials: int = Field(3, ge=1, description="median: trials that must have come as far.")
    quantile: float = Field(0.25, gt=0, le=0.5, description="pbt: part of the trials that is replaced, and copied.")
    resample: float = Field(0.25, ge=0, le=1, description="pbt: probability of a new value instead of one nearby.")


class SweepSpec(Section):
    """A sweep, whole."""

    sweep: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=80,
        description="Name of the sweep; its trials are runs of this name and a number.",
    )
    recipe: str | dict[str, Any] = Field(description="Recipe of the run: a file, relative to this one, or its fields.")
    set: dict[str, Any] = Field(default_factory=dict, description="Fields of the run changed for all trials.")
    space: dict[str, Domain] = Field(min_length=1, description="Domain of every field that is searched over.")
    searcher: SearcherConfig = Field(default_factory=SearcherConfig, description="Which points are tried.")
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig, description="When a trial is stopped.")
    metric: Literal["train_loss", "val_loss"] = Field(
        "train_loss",
        description="What is minimized: the mean loss of the last `window` steps, or that of the held-out text.",
    )
    window: int = Field(8, ge=1, le=512, description="Steps whose mean is reported as train_loss.")
    report_every: int | None = Field(
        None, ge=1, description="Steps from one report of a trial to the next; null: a sixteenth of the run."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Most trials at once; null: as many as the cluster has room for."
    )


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        base: the run with `set` in place, under the sweep's name; trials differ from it by their point.
        document: its fields as they were written.
        full: the base recipe's fields without `set`.
    """

    spec: SweepSpec
    base: RunConfig
    document: dict[str, Any]
    full: dict[str, Any]

    @property
    def name(self) -> str:
        """The sweep's."""
        return self.spec.sweep

    @property
    def steps(self) -> int:
        """Steps of a trial that is not stopped."""
        return self.base.train.steps

    @property
    def trials(self) -> int:
        """Trials in all."""
        wanted = self.spec.searcher.trials
        if self.spec.searcher.name == "grid":
            points = len(grid(self.spec.space))
            return min(wanted, points) if wanted is not None else points
        return wanted if wanted is not None else 16

    def config_of(self, point: Mapping[str, Any], run: str) -> RunConfig:
        """The run of a trial.

        Raises:
            RecipeError: it would be refused.
        """
        document = changed(self.document, {**point, "run": run})
        return config_from(document, f"trial {run}").model_copy(update={"store": self.base.store})

    def result_fields(self) -> dict[str, Any]:
        """What decides the sweep's result, by dotted name: to be the same when it is continued."""
        spec = self.spec.model_dump(mode="json", by_alias=True, exclude={"set", "recipe", "max_concurrent"})
        spec["searcher"].pop("trials")
        run = {name: value for name, value in flatten(self.base.model_dump(mode="json")).items() if not is_free(name)}
        return {**flatten(spec), **{f"run.{name}": value for name, value in run.items()}}


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep that a recipe describes; an override names a field of the sweep, or of the run for all trials.

    Raises:
        RecipeError: all problems are in the message, those that only some trial would have among them.
    """
    path = Path(path)
    document = _with_new_names(read_recipe(path))
    mine = [each for each in overrides if each.partition("=")[0].split(".")[0] not in RunConfig.model_fields]
    problems = apply_overrides(document, mine)
    try:
        spec = SweepSpec.model_validate(document)
    except ValidationError as error:
        raise RecipeError(listed(str(path), problems + field_problems(error, SweepSpec))) from None
    full = copy.deepcopy(spec.recipe) if isinstance(spec.recipe, dict) else read_recipe(path.parent / spec.recipe)
    full["run"] = spec.sweep
    problems += rename_fields(full)[1]
    base = changed(full, flatten(spec.set))
    problems += apply_overrides(base, [each for each in overrides if each not in mine])
    problems += [*_space_problems(spec.space), *_point_problems(spec)]
    if problems:
        raise RecipeError(listed(str(path), problems))
    config = config_from(base, f"{path}, for every trial")
    sweep = Sweep(spec, config, base, full)
    problems = [*_sweep_problems(sweep), *_trial_problems(sweep)]
    if problems:
        raise RecipeError(listed(str(path), problems))
    return sweep


def _with_new_names(document: dict[str, Any]) -> dict[str, Any]:
    """The sweep's recipe with fields of the run under their present names; says so where it has an old one."""
    set_, space, searcher = (document.get(name) for name in ("set", "space", "searcher"))
    result = dict(document)
    if isinstance(set_, dict):
        result["set"] = with_new_names(flatten(set_))
    if isinstance(space, dict):
        result["space"] = with_new_names(space)
    if isinstance(searcher, dict) and isinstance(points := searcher.get("points"), list):
        renamed = [with_new_names(point) if isinstance(point, dict) else point for point in points]
        result["searcher"] = {**searcher, "points": renamed}
    return result


def changed(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the fields of `values`, by dotted name, in place."""
    result = copy.deepcopy(dict(document))
    for name, value in values.items():
        assign(result, name.split("."), list(value) if isinstance(value, tuple) else value)
    return result


def _space_problems(space: Space) -> Iterator[str]:
    known = {field.name for field in fields_of(RunConfig)}
    for name, domain in space.items():
        pattern = ".".join("N" if part.isdecimal() else part for part in name.split("."))
        fixed = next((each for each in _SAME_FOR_ALL if name == each or name.startswith(each + ".")), None)
        if pattern not in known:
            near = nearest_name(RunConfig, name)
            yield f"space.{name}: there is no such field" + (
                f"; did you mean {near}?" if near else "; see manta schema"
            )
        elif fixed is not None:
            yield f"space.{name}: not to be searched over, {_SAME_FOR_ALL[fixed]}. It goes into `set`, for all trials."
        elif is_free(name):
            yield f"space.{name}: does not change what a run learns. It goes into `set`, for all trials."
        for other, wanted in domain.conditions().items():
            if other not in space:
                yield f"space.{name}.when: {other} is not in the space. There are: {', '.join(space)}."
                continue
            for value in wanted:
                if not space[other].holds(value):
                    yield f"space.{name}.when: {other} never is {value!r}. It is one of {_shown(space[other])}."
    if all(other in space for domain in space.values() for other in domain.conditions()):
        try:
            in_order(space)
        except ValueError as error:
            yield f"space: {error}."


def _point_problems(spec: SweepSpec) -> Iterator[str]:
    for index, point in enumerate(spec.searcher.points):
        for name, value in point.items():
            if name not in spec.space:
                yield f"searcher.points.{index}.{name}: not a field of the space. There are: {', '.join(spec.space)}."
            elif not spec.space[name].holds(value):
                yield f"searcher.points.{index}.{name} = {value!r}: not in the space, {_shown(spec.space[name])}."
            elif not all(other in point for other in spec.space[name].conditions()):
                needed = ", ".join(spec.space[name].conditions())
                yield f"searcher.points.{index}.{name}: counts only with certain {needed}; give that, too."
            elif not counts(spec.space[name], point):
                yield f"searcher.points.{index}.{name}: does not count with the point's other values; leave it out."


def _sweep_problems(sweep: Sweep) -> Iterator[str]:
    spec, steps = sweep.spec, sweep.steps
    every, scheduler = sweep.base.eval.every_steps, spec.scheduler
    if spec.metric == "val_loss" and not sweep.base.data.has_held_out:
        yield "metric = val_loss: nothing is held out to evaluate on. Take train_loss, or hold some out."
    elif spec.metric == "val_loss" and every is None and scheduler.name != "none":
        yield (
            "metric = val_loss: eval.every_steps is null, so that trials could not be compared on the way. "
            f"Set it, as in set: {{eval.every_steps: {max(1, steps // 9)}}}, or take train_loss."
        )
    if scheduler.name != "none" and scheduler.grace_steps is not None and scheduler.grace_steps >= steps:
        yield f"scheduler.grace_steps = {scheduler.grace_steps}: not less than a trial's steps, train.steps = {steps}."
    if scheduler.name == "pbt" and sweep.trials < 2:
        yield f"searcher.trials = {sweep.trials}: pbt copies one trial to another; at least 2, and 4 or more is usual."
    if scheduler.name == "pbt" and spec.searcher.name == "optuna":
        yield "searcher.name = optuna: pbt changes trials on its own and begins them all at once; take random or grid."


def _trial_problems(sweep: Sweep) -> Iterator[str]:
    """What trials at the corners of the space would be refused for; each problem once, with the first such trial."""
    seen = set()
    for point in extreme_points(sweep.spec.space, COMBINATIONS):
        try:
            sweep.config_of(point, sweep.name)
        except RecipeError as error:
            for problem in str(error).splitlines()[1:]:
                if problem not in seen:
                    seen.add(problem)
                    yield f"a trial with {_told(point)} would be refused: {problem.strip()}"


def _told(point: Point) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _shown(domain: Domain) -> str:
    return str(list(domain.values)) if domain.values is not None else f"{domain.kind} {list(domain.bounds or ())}"
