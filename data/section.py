"""What every part of a recipe is."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: immutable, and a name it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def without_password(url: str) -> str:
    """The URL or path as it is.

    Raises:
        ValueError: there is a name or password in it, which would be kept and shown wherever the config is.
    """
    if "://" in url and "@" in urlsplit(url).netloc:
        raise ValueError(
            "has a name or password in it, and is kept with the run. Leave them out, and set what the server asks for "
            "in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    return url


Place = Annotated[str, AfterValidator(without_password)]
"""A URL or path."""
