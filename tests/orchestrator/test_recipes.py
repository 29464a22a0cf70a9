"""Every recipe that comes with the project is valid, and says what it is for."""

from pathlib import Path

import pytest

from orchestrator.config import load_recipe
from orchestrator.sweep.spec import load_sweep

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_it_is_valid_and_begins_with_a_sentence(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    load_sweep(path) if "\nsweep:" in text else load_recipe(path)
