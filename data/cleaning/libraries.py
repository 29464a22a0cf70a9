"""Libraries that only some steps need: imported when they are, and named with the remedy where they are missing."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from types import ModuleType

from data.errors import InputError
from data.extras import installing

INSTALL = installing("text")


def library(module: str, needed_by: str) -> ModuleType:
    """An imported library.

    Raises:
        InputError: it is not installed here; with the step that needs it, and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{needed_by} needs {module}, which is not installed here ({error}): {INSTALL}") from None


@cache
def version_of(module: str) -> str | None:
    """The version of an installed library; None where it is not installed."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None
