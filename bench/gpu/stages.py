"""Runs stages within a time budget, the most important first; each result is written to a file at once."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.setting import Setting

Found = dict[str, Any]
"""What a stage found, as JSON has it."""

TINY_SHARE = 0.2
"""Part of a stage's seconds that it takes with tiny shapes."""


@dataclass(frozen=True)
class Stage:
    """One measurement.

    Attributes:
        name: its key in the file.
        needs_s: seconds it takes on a GPU, at most; with fewer left it is left out.
        body: finds out.
    """

    name: str
    needs_s: float
    body: Callable[[Setting], Found]


class Report:
    """DIR/gpu_check.json: the settings, and under `stages` what each stage found, or why it found nothing.

    A stage has `took_s` and what it found; or `failed` and `where`; or `left_out`.
    """

    def __init__(self, path: Path, settings: Found) -> None:
        self._path, self._found = path, settings | {"stages": {}}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def failed(self) -> list[str]:
        """Stages that failed."""
        return [name for name, found in self._found["stages"].items() if "failed" in found]

    def add(self, name: str, found: Found) -> None:
        """Adds the result of a stage."""
        self._found["stages"][name] = found
        self._write()

    def _write(self) -> None:
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(self._found, indent=1) + "\n")
        unfinished.replace(self._path)  # never half a file, whenever the machine is taken away


def run_stages(stages: Sequence[Stage], setting: Setting, budget_s: float, report: Report) -> None:
    """Runs stages in order, each only if the rest of the budget suffices for it."""
    began = time.monotonic()
    for stage in stages:
        left_s = budget_s - (time.monotonic() - began)
        needs_s = stage.needs_s * (TINY_SHARE if setting.tiny else 1.0)
        if left_s < needs_s:
            found: Found = {"left_out": f"{left_s:.0f} s of the budget are left, and it needs {needs_s:.0f} s"}
        else:
            found = run_stage(stage, setting)
        report.add(stage.name, found)
        print(f"[{time.monotonic() - began:6.1f} s] {stage.name}: {json.dumps(found)}", flush=True)


def run_stage(stage: Stage, setting: Setting) -> Found:
    """The result of a stage, or its error; later stages run in either case."""
    began = time.monotonic()
    try:
        found = stage.body(setting)
    except Exception as error:
        found = {"failed": repr(error)[:2000], "where": traceback.format_exc()[-3000:]}
    setting.release()
    return {"took_s": round(time.monotonic() - began, 1), **found}
