"""torch without its compiler, for processes that compile nothing.

Optimizers, DDP and the loss mark functions that must not be compiled, and in doing so import the compiler: 1.4 s and
70 MB in every worker at every start, for nothing. This is the project's only use of torch that is not public;
`tests/model/test_eager.py` holds torch to it. Checked against torch 2.13.0, the version the project pins.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

_NAME = "torch._dynamo"


class _Stub(ModuleType):
    """Answers what eager code asks of the compiler; for any other question the real one takes its place."""

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # asked by DDP
    config = SimpleNamespace(error_on_nested_fx_trace=True)  # asked by activation checkpointing
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # told by process groups
    graph_break = staticmethod(lambda: None)  # told by optimizers

    @staticmethod
    def disable(function: Any = None, *_: object, **__: object) -> Any:
        """Not to be compiled: it will not be. With or without arguments, as a decorator or called."""
        return (lambda decorated: decorated) if function is None else function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME], sys.modules["torch"]._dynamo
        return getattr(importlib.import_module(_NAME), name)


def skip_compiler() -> None:
    """Keep torch from importing its compiler in this process. To be called before anything of `model` that uses torch.

    Where the compiler has been imported already, or is asked for later, it is there as ever.
    """
    import torch

    if _NAME not in sys.modules:
        stub = _Stub(_NAME)
        sys.modules[_NAME] = stub
        torch._dynamo = stub  # type: ignore[attr-defined, unused-ignore]
