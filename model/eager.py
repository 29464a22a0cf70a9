"""Replaces torch's compiler by a stub in processes that compile nothing.

Optimizers, DDP and the loss mark functions that must not be compiled, and import the compiler to do so: 1.4 s and 70 MB
at every start of a worker, without any use. This is the project's only use of private names of torch;
`tests/model/test_eager.py` checks them. Verified with torch 2.13.0, the version that the project pins.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

_NAME = "torch._dynamo"


class _Stub(ModuleType):
    """Has the names that eager code uses; any other name loads the real compiler in its place."""

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # used by DDP
    config = SimpleNamespace(error_on_nested_fx_trace=True)  # used by activation checkpointing
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # called by process groups
    graph_break = staticmethod(lambda: None)  # called by optimizers

    @staticmethod
    def disable(function: Any = None, *_: object, **__: object) -> Any:
        """Returns the function unchanged, or a decorator that does; nothing is compiled anyway."""
        return (lambda decorated: decorated) if function is None else function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME], sys.modules["torch"]._dynamo
        return getattr(importlib.import_module(_NAME), name)


def skip_compiler() -> None:
    """Keeps torch from importing its compiler in this process. Call it before importing what uses torch.

    If the compiler has been imported before, or is used later, it works as usual.
    """
    import torch

    if _NAME not in sys.modules:
        stub = _Stub(_NAME)
        sys.modules[_NAME] = stub
        torch._dynamo = stub  # type: ignore[attr-defined, unused-ignore]
