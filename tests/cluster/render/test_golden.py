"""Rendered files, committed so that every change of them shows in a diff.

To write them again after an intended change:

    MANTA_RENEW_GOLDEN=1 pytest tests/cluster/render/test_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.render import render

ROOT = Path(__file__).parents[3]
GOLDEN = Path("tests/cluster/render/golden")
RECIPE, EVERYTHING, EXAMPLE = GOLDEN / "recipe.yaml", GOLDEN / "everything.yaml", Path("recipes/clusters/gpu-spot.yaml")

RENDERED: dict[str, tuple[Path, dict[str, Any]]] = {
    "gpu-spot-rayjob": (EXAMPLE, {"recipe": RECIPE}),
    "gpu-spot-raycluster": (EXAMPLE, {"kind": "raycluster"}),
    "gpu-spot-vm": (EXAMPLE, {"to": "vm"}),
    "everything-rayjob": (EVERYTHING, {"recipe": RECIPE, "overrides": ["grace_s=120"]}),
    "everything-vm": (EVERYTHING, {"to": "vm"}),
    "gcp-vm": (GOLDEN / "gcp.yaml", {"to": "vm"}),
}


@pytest.mark.parametrize("name", RENDERED)
def test_it_is_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec, options = RENDERED[name]
    text, file = render(spec, **options), GOLDEN / f"{name}.rendered.yaml"
    if os.environ.get("MANTA_RENEW_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "the module's docstring says how to write it again"


def test_no_file_is_left_of_a_removed_case() -> None:
    assert {path.name for path in (ROOT / GOLDEN).glob("*.rendered.yaml")} == {f"{n}.rendered.yaml" for n in RENDERED}
