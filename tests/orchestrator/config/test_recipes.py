"""Every recipe that comes with the project is valid, and says what it is for."""

import re
from pathlib import Path

import pytest

from orchestrator.config.load import load_recipe
from orchestrator.sweep.load import load_sweep

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_it_is_valid_and_begins_with_a_sentence(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    load_sweep(path, tries_points=True) if "\nsweep:" in text else load_recipe(path)


@pytest.mark.parametrize("name", ["shakespeare-char", "gpt2-124m", "multi30k-en-de", "tatoeba-en-zh"])
def test_a_known_result_is_stated_with_its_number_and_what_was_measured(name: str) -> None:
    [text] = [path.read_text() for path in RECIPES if path.stem == name]
    head = text.partition("\nrun:")[0]
    stated = re.findall(r"^#   (expected|measured) +(.*)$", head, re.MULTILINE)
    assert "measured" in dict(stated) and any(re.search(r"\d", line) for _, line in stated)
