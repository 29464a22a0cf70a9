"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.errors import InputError

if TYPE_CHECKING:
    from orchestrator.config.recipe import RunConfig

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file that describes the run.")]

RecipeOrRun = Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or the run of one in recipes/.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field by its dotted name; may be given many times."),
]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL|NAME",
        help="Dashboard of the cluster, http://HOST:8265, or the name of one of this machine; default "
        "RAY_API_SERVER_ADDRESS, else the one that is up here.",
    ),
]

RunOrJob = Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run, of which the newest job counts, or a job.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def load_config(recipe: Path, overrides: list[str] | None) -> RunConfig:
    from orchestrator.config.load import load_recipe

    return load_recipe(recipe, overrides or [])


def load_run_config(run: str, overrides: list[str] | None) -> RunConfig:
    from orchestrator.config.recipe_file import find_recipe

    return load_config(find_recipe(run), overrides)


def seconds_of(text: str, option: str = "--every") -> float:
    """Seconds that "20s", "1.5m" or "20" stand for.

    Raises:
        InputError: it is none of these; the message names the option it was given to.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|)", text.strip())
    if match is None:
        raise InputError(f"{option} {text}: give seconds, as 20s.")
    return float(match[1]) * (60 if match[2] == "m" else 1)
