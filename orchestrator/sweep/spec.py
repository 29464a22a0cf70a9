"""The recipe of a sweep: the run, the space that is searched, the searcher and the scheduler."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import Field

from data.config import SECRET
from data.errors import InputError
from data.order.sample_order import quotas_of
from data.section import Section
from orchestrator.config.load import config_from
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import assign
from orchestrator.config.result_fields import flatten, is_free
from orchestrator.errors import RecipeError
from orchestrator.sweep.space import Domain, Point, grid, on_the_grid, plain

FREE = ("max_concurrent", "max_failures", "max_hours", "plateau", "target")
"""Fields of a sweep that may change when it continues, besides `searcher.trials` and `searcher.points`."""


class SearcherConfig(Section):
    """How the points of the trials are chosen."""

    name: Literal["grid", "random", "optuna"] = Field(
        "optuna",
        description="grid tries all points of a grid, random draws points, optuna (TPE) learns from earlier trials.",
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="Number of trials, or of points where each has several; null: the whole grid for grid, else 16.",
    )
    repeats: int = Field(
        1,
        ge=1,
        description="Trials of each point, with the run's seed, the next one and so on. Points are compared by the "
        "mean of their losses, and a point has failed if one of its trials has. Not with pbt, median, asha-stopping.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything the search draws at random.")
    points: tuple[dict[str, Any], ...] = Field((), description="Points to try first; fields left out of one are drawn.")
    from_: str | None = Field(
        None,
        alias="from",
        description="Earlier sweep, by its name in this storage or the URL of its folder. Its best points that fit the "
        "space are tried first. optuna knows its losses at this sweep's first rung, if the run's recipe, the data, "
        "the metric and repeats are the same. Not with grid.",
    )
    batch: int = Field(
        4,
        ge=1,
        description="optuna: points that are drawn from the same results. More of them run at once, fewer learn more; "
        "the results do not depend on how many really do.",
    )


class SchedulerConfig(Section):
    """When a trial is stopped before its last step."""

    name: Literal["none", "halving", "asha", "pasha", "hyperband", "asha-stopping", "median", "pbt"] = Field(
        "asha",
        description="none: never; halving: at each rung the best 1/factor of all trials go on, the others are paused "
        "until that is decided; asha: the same trials win, and free slots train the best so far in advance; pasha: "
        "halving that ends once a rung ranks the trials as the one before did; hyperband: halving in several brackets; "
        "asha-stopping: a trial that is not among the best 1/factor so far is stopped while it runs, which depends on "
        "who comes first, as median does: a trial worse than the median of the others is stopped; pbt: the worst "
        "trials continue from the state of the best ones, with changed values.",
    )
    grace_steps: int | None = Field(
        None,
        ge=1,
        description="First rung, in steps: no trial is stopped before it; null: a ninth of the run, a twelfth for pbt. "
        "With val_loss, rungs are the next steps after which a trial is evaluated.",
    )
    factor: float = Field(
        4.0,
        gt=1,
        allow_inf_nan=False,
        description="Halving of all kinds: one trial in this many continues past a rung.",
    )
    brackets: int = Field(3, ge=1, description="hyperband: number of brackets, each with another first rung.")
    min_trials: int = Field(
        3, ge=1, description="median: trials that must have reached the step before one is stopped there."
    )
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="pbt: share of the trials that is replaced, and share that is copied from."
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="pbt: probability that a value is drawn anew instead of changed a little."
    )


class PlateauConfig(Section):
    """When further points no longer help: by losses at the first rung, in the order of the trials' numbers."""

    trials: int | None = Field(
        None,
        ge=1,
        description="Points without an improvement after which the sweep begins no more; those up to there are "
        "compared as if there had never been others. null: no such end. Not with hyperband and pbt.",
    )
    by: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="An improvement is a loss that is less than the least before by more than this, at the first rung "
        "(at the last step where there is none).",
    )


class SweepSpec(Section):
    """The recipe of a sweep."""

    sweep: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=80,
        description="Name of the sweep; its trials are runs named SWEEP-t001, SWEEP-t002, …",
    )
    recipe: str | dict[str, Any] = Field(
        description="Recipe of the run: a path relative to this file, or the fields themselves."
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the run that are set for all trials, by dotted name."
    )
    space: dict[str, Domain] = Field(
        min_length=1,
        description="Domain of each searched field, by dotted name. Of the data, only the weights of sources, such as "
        "data.sources.1.weight, and only with metric: val_loss.",
    )
    searcher: SearcherConfig = Field(
        default_factory=SearcherConfig, description="How the points of the trials are chosen."
    )
    scheduler: SchedulerConfig = Field(
        default_factory=SchedulerConfig, description="When a trial is stopped before its last step."
    )
    metric: Literal["train_loss", "val_loss"] = Field(
        "train_loss",
        description="What the sweep minimizes: train_loss, the mean loss of the last `window` steps, or val_loss, the "
        "loss on the held-out text.",
    )
    window: int = Field(8, ge=1, le=512, description="Steps whose mean loss is reported as train_loss.")
    report_every: int | None = Field(
        None, ge=1, description="Steps between two reports of a trial; null: a sixteenth of the run."
    )
    max_failures: int = Field(
        2,
        ge=0,
        description="Times that a trial is tried again between two rungs, after its workers, a node or the store "
        "failed. What would fail again, such as a loss that is not finite, is not tried again.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Hours after which the sweep ends with the best trial so far, over all attempts at it. With more "
        "of them, the same command continues it.",
    )
    target: float | None = Field(
        None, allow_inf_nan=False, description="Loss at which the sweep ends: a trial that is compared has reached it."
    )
    plateau: PlateauConfig = Field(
        default_factory=PlateauConfig, description="When further points no longer help, and the sweep ends."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Maximum number of trials at the same time; null: as many as fit on the cluster."
    )


class Earlier(NamedTuple):
    """What a sweep takes over from an earlier one.

    Attributes:
        points: to try first.
        results: points with their losses at the first rung, which the searcher knows.
    """

    points: tuple[Point, ...] = ()
    results: tuple[tuple[Point, float], ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        base: the run with `set` applied and the sweep's name; trials differ from it by their point.
        document: the fields of `base` as they were written.
        full: the fields of the run's recipe without `set`.
        earlier: what is taken over by `searcher.from`.
    """

    spec: SweepSpec
    base: RunConfig
    document: dict[str, Any]
    full: dict[str, Any]
    earlier: Earlier = field(default_factory=Earlier)

    def reaching(self, base: RunConfig) -> Sweep:
        """The sweep with a base whose storage is reached, and without keys: trials' actors get it."""
        spec = self.spec.model_copy(
            update={"set": without_keys(self.spec.set), "recipe": without_keys(self.spec.recipe)}
        )
        return Sweep(spec, base, without_keys(self.document), without_keys(self.full))

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.spec.sweep

    @property
    def steps(self) -> int:
        """Steps of a trial that runs to its end."""
        return self.base.train.steps

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.points * self.spec.searcher.repeats

    def seed_of(self, number: int) -> int:
        """Seed of the run of trial `number`, from 1."""
        return self.base.seed + (number - 1) % self.spec.searcher.repeats

    @property
    def points(self) -> int:
        """Number of points that are tried."""
        wanted = self.spec.searcher.trials
        if self.spec.searcher.name == "grid":
            given = (on_the_grid(self.spec.space, point) for point in self.spec.searcher.points)
            points = len({plain(point) for point in (*self.grid, *given)})
            return min(wanted, points) if wanted is not None else points
        return wanted if wanted is not None else 16

    @property
    def given_points(self) -> tuple[Point, ...]:
        """Points to try first; those of the recipe come last, since some may be added."""
        return *self.earlier.points, *self.spec.searcher.points

    @cached_property
    def grid(self) -> list[Point]:
        """All points of the space's grid."""
        return grid(self.spec.space)

    def config_of(self, point: Mapping[str, Any], run: str, seed: int | None = None) -> RunConfig:
        """The config of a trial's run.

        Args:
            seed: None: that of the recipe.

        Raises:
            RecipeError: the point makes the recipe invalid.
        """
        document = self.document_of(point, run) | ({} if seed is None else {"seed": seed})
        return config_from(document, f"trial {run}").model_copy(update={"store": self.base.store})

    def problems_of(self, point: Mapping[str, Any]) -> list[str]:
        """Why a trial with this point would be refused, a line for each reason; empty where it would not."""
        try:
            data = self.config_of(point, self.name).data
            sources = data.sources_of("train")
            quotas_of([data.sources[source].weight for source in sources], sources)
        except RecipeError as error:
            return [line.strip() for line in str(error).splitlines()[1:]]
        except (InputError, LookupError) as error:  # a weight that is too small; an index that is not there
            return [str(error.args[0] if isinstance(error, LookupError) else error)]
        return []

    def document_of(self, point: Mapping[str, Any], run: str) -> dict[str, Any]:
        """The fields of a trial's run.

        The constants that the run's recipe gives to its optimizer, such as its weight decay, are not those of another
        one: a trial with another one has that one's usual constants, but for what the sweep sets or searches.
        """
        document = changed(self.document, {**point, "run": run})
        written = (self.full.get("train") or {}).get("optimizer") or {}
        if point.get("train.optimizer.name", self.base.train.optimizer.name) != self.base.train.optimizer.name:
            optimizer = document["train"]["optimizer"]
            kept = {f"train.optimizer.{name}" for name in ("name", "groups")} | point.keys()
            for name, value in written.items():
                if f"train.optimizer.{name}" not in kept and optimizer.get(name) == value:
                    del optimizer[name]
        return document

    def result_fields(self) -> dict[str, Any]:
        """Value by dotted name of the fields that decide the sweep's result and cannot change when it continues."""
        spec = self.spec.model_dump(mode="json", by_alias=True, exclude={"set", "recipe", *FREE})
        if self.spec.scheduler.name != "pbt":  # whose trials need each other's states, which are not kept
            spec["searcher"].pop("trials")
        spec["searcher"].pop("points")
        run = {name: value for name, value in flatten(self.base.model_dump(mode="json")).items() if not is_free(name)}
        return {**flatten(spec), **{f"run.{name}": value for name, value in run.items()}}


def without_keys(value: Any) -> Any:
    """The fields, nested or by dotted name, without the store's keys; tuples, which YAML does not have, as lists."""
    if isinstance(value, Mapping):
        kept = {name: each for name, each in value.items() if str(name).rpartition(".")[2] not in SECRET}
        return {name: without_keys(each) for name, each in kept.items()}
    return [without_keys(each) for each in value] if isinstance(value, (list, tuple)) else value


def changed(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `document` with the fields of `values`, by dotted name, set."""
    result = copy.deepcopy(dict(document))
    for name, value in values.items():
        assign(result, name.split("."), list(value) if isinstance(value, tuple) else value)
    return result
