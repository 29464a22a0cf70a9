"""Imports a user's function as a step, and checks what it returns."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from data.errors import InputError
from manta_start import PACKAGES


def checked_function(path: str) -> Callable[[str], str | None]:
    """The function at an import path, with its results checked.

    When called, it raises TypeError or ValueError for a result that is not text, and whatever the function raises.

    Raises:
        InputError: the module or function does not exist, or importing it fails.
    """
    function = _function_at(path)

    def call(text: str) -> str | None:
        result = function(text)
        if result is None:
            return None
        if not isinstance(result, str):
            raise TypeError(f"it returned {type(result).__name__}, not str or None")
        result.encode()  # half of a surrogate pair is not text; the tokenizer would raise on it
        return result

    return call


def source_digest(path: str) -> str:
    """The digest of the source file of the function's module. Modules that it imports are not included.

    Raises:
        InputError: the module does not exist.
    """
    module = _module_of(path)
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file else sys.version.encode()  # a built-in module has no file
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _function_at(path: str) -> Callable[[str], Any]:
    name = path.rpartition(".")[2]
    module = _module_of(path)
    function = getattr(module, name, None)
    if function is None:
        raise InputError(f"the module {module.__name__} ({getattr(module, '__file__', 'built in')}) has no {name!r}")
    if not callable(function):
        raise InputError(f"{path} is {function!r:.60}, which cannot be called; it must be a function that takes a text")
    return function  # type: ignore[no-any-return]


def _module_of(path: str) -> ModuleType:
    # sys.path of the `manta` command starts with the command's own folder, not the current one. The current folder is
    # appended last, so that nothing there hides an installed module. Ray's workers have it in the same position.
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    name = path.rpartition(".")[0]
    if name.split(".")[0] in PACKAGES:
        raise InputError(
            f"{name} cannot hold a function of yours: {', '.join(PACKAGES)} are names of Manta's own packages. "
            "Rename the file or folder, and the function's path with it"
        )
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise InputError(
            f"importing {name} fails on this machine: {type(error).__name__}: {error}. "
            f"It is searched for in {folder} and on Python's path; "
            "`ray job submit --working-dir` copies the folder to a cluster"
        ) from None
