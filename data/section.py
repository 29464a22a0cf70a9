"""The base class of every section of a recipe.

A module of its own, because sections are defined in many places, and those of `data.config` contain some of them.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a recipe: immutable; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def without_password(url: str) -> str:
    """The URL or path, unchanged.

    Raises:
        ValueError: it contains a user name or password, which would be stored and shown wherever the config is.
    """
    if "://" in url and "@" in urlsplit(url).netloc:
        raise ValueError(
            "contains a user name or password, and is stored with the run. Leave them out, and set what the server "
            "needs in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
    return url


def without_variables(url: str) -> str:
    """The URL or path, unchanged.

    Raises:
        ValueError: it means something else than it says: a variable, which nothing expands, or half of a URL.
    """
    if variable := re.search(r"\$\{?[A-Za-z_]\w*", url):
        raise ValueError(f"variables such as {variable[0]} are not expanded; write what it stands for")
    if half := re.match(r"(s3|gs|file|https?):(?!//)", url):
        raise ValueError(f"begins with {half[0]} and is no URL; write {half[0]}//…, or ./{half[0]}… for a folder")
    return url


def of_a_store(url: str) -> str:
    """The URL or path, unchanged.

    Raises:
        ValueError: nothing can be kept there.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "gs":
        raise ValueError(
            "gs:// may hold shards, not run state, for which it is accessed without conditional writes. Write "
            "s3://bucket/prefix, with a store.endpoint_url where it is not AWS, or a path"
        )
    if separator and scheme not in ("s3", "file"):
        raise ValueError(f"{scheme}:// is no storage; write s3://bucket/prefix or a path")
    if scheme == "s3" and separator and not rest.partition("/")[0]:
        raise ValueError("names no bucket; write s3://bucket/prefix")
    return url


UrlOrPath = Annotated[str, AfterValidator(without_password), AfterValidator(without_variables)]
"""A URL or path."""

StoreUrlOrPath = Annotated[UrlOrPath, AfterValidator(of_a_store)]
"""A URL or path of what `data.stores.open.open_store` opens."""
