"""A function of the user's own as a step."""

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


def checked_function(path: str) -> Callable[[str], str | None]:
    """The function at an import path, its results checked.

    Raises (when called):
        TypeError, ValueError: it returned something that is no text; and whatever it raises itself.

    Raises:
        InputError: there is no such module or function, or importing it fails.
    """
    function = _function_at(path)

    def call(text: str) -> str | None:
        result = function(text)
        if result is None:
            return None
        if not isinstance(result, str):
            raise TypeError(f"it returned {type(result).__name__}, not str or None")
        result.encode()  # half of a surrogate pair is no text, and would end the tokenizer
        return result

    return call


def source_digest(path: str) -> str:
    """A digest of the module that holds the function: of its file, as it was when it was imported from there.

    What the module imports from elsewhere is not looked into.

    Raises:
        InputError: there is no such module.
    """
    module = _module_of(path)
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file else sys.version.encode()  # a module inside the interpreter has no file
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _function_at(path: str) -> Callable[[str], Any]:
    name = path.rpartition(".")[2]
    module = _module_of(path)
    function = getattr(module, name, None)
    if function is None:
        raise InputError(f"the module {module.__name__} ({getattr(module, '__file__', 'built in')}) has no {name!r}")
    if not callable(function):
        raise InputError(f"{path} is {function!r:.60}, which cannot be called; it must be a function of a text")
    return function  # type: ignore[no-any-return]


def _module_of(path: str) -> ModuleType:
    # The `manta` command has its own folder in front of sys.path, and not the one it was called in. Last, so that
    # nothing there takes the place of an installed module. Ray's workers have it there as well.
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    name = path.rpartition(".")[0]
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module of the user's may fail in any way
        raise InputError(
            f"importing {name} fails on this machine: {type(error).__name__}: {error}. "
            f"It is looked for in {folder} and where Python looks for modules; "
            "`ray job submit --working-dir` takes the folder to a cluster"
        ) from None
