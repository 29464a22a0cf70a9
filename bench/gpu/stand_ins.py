"""Replacements for packages that training on one GPU imports but never calls."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

STOOD_IN_FOR = frozenset({"ray", "boto3", "botocore"})
"""Also where they are installed: what is measured is then the same on every machine, and a check without Ray at all."""


class StandIn(ModuleType):
    """A module that has every name: a class for each capitalized one, and a module for each of the others."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"The stand-in for {self.__name__} has no {name}.")
        made = empty_class(name) if name[0].isupper() else import_module(f"{self.__name__}.{name}")
        setattr(self, name, made)
        return made

    def __call__(self, *_args: object, **_named: object) -> NoReturn:
        """Refuses the call of a function whose name was replaced by a module.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self.__name__}() was called, and here is only a stand-in for it.")


class StandIns(MetaPathFinder, Loader):
    """Finds a `StandIn` for every module of `STOOD_IN_FOR`, at any depth."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A package's spec, for names that are stood in for."""
        if fullname.partition(".")[0] not in STOOD_IN_FOR:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, empty as yet."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""


def empty_class(name: str) -> type:
    """A class to inherit from, to catch or to index, but not to use."""
    base = Exception if name.endswith(("Error", "Exception")) else object
    return type(name, (base,), {"__class_getitem__": classmethod(lambda cls, _: cls)})
