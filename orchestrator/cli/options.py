"""Arguments and options that several commands share, and the reading of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import InputError

if TYPE_CHECKING:
    from orchestrator.config.recipe import RunConfig

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the run.")]

RecipeOrRun = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|RUN", help="A recipe, or the name of a run that was started here or has a recipe in recipes/."
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field by its dotted name; repeatable."),
]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL|NAME",
        help="Dashboard of the cluster, such as http://HOST:8265, or the name of a local cluster; default: "
        "RAY_API_SERVER_ADDRESS, else the running local cluster.",
    ),
]

RunOrJob = Annotated[
    str, typer.Argument(metavar="RUN|JOB", help="A run, whose newest job is meant, or the id of a job.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Audit = Annotated[
    bool,
    typer.Option("--audit", help="Audit the samples of a run also where they are so many that it takes minutes."),
]

Takeover = Annotated[
    bool, typer.Option("--takeover", help="Take over from an attempt that seems alive; that attempt stops.")
]


Patience = Annotated[
    str, typer.Option(metavar="SECONDS", help="How long to wait for an attempt that seems alive, such as 60s.")
]


def load_config(recipe: Path, overrides: list[str] | None) -> RunConfig:
    """Reads a recipe with its overrides."""
    from orchestrator.config.load import load_recipe

    return load_recipe(recipe, overrides or [])


def load_run_config(run: str, overrides: list[str] | None) -> RunConfig:
    """Reads the recipe of a run, given by the run's name or the recipe's path."""
    from orchestrator.config.recipe_file import find_recipe

    return load_config(find_recipe(run), overrides)


def seconds_of(text: str, option: str = "--every") -> float:
    """Parses a duration such as "20s", "1.5m" or "20" into seconds.

    Args:
        text: the duration.
        option: the option it was given to, for the message.

    Raises:
        InputError: it is not a duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|)", text.strip())
    if match is None:
        raise InputError(f"{option} {text}: not a duration; give seconds or minutes, such as 20s or 1.5m.")
    return float(match[1]) * (60 if match[2] == "m" else 1)
