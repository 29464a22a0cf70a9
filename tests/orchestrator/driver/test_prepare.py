"""Patterns that match no parameter are refused by the command, before it touches the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from data.errors import InputError
from orchestrator.cli.main import app
from orchestrator.config.load import load_recipe
from orchestrator.driver.prepare import refuse_unmatched_groups
from orchestrator.errors import RecipeError

RUN = {
    "run": "named",
    "storage": "runs/",
    "data": {"sources": [{"path": "corpus/"}]},
    "model": {"n_layers": 2, "d_model": 32},
    "train": {"steps": 9, "global_batch_size": 2, "micro_batch_size": 2, "lr": 1e-3},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "named.yaml"
    path.write_text(yaml.safe_dump(RUN | {"storage": str(tmp_path / "kept")}))
    return path


def test_patterns_that_match_are_accepted(recipe: Path) -> None:
    groups = '[{match: "*norm*", weight_decay: 0.1}, {match: blocks.1.*, lr: 0.5}, {match: "*"}]'
    refuse_unmatched_groups(load_recipe(recipe, [f"train.optimizer.groups={groups}"]))


def test_all_patterns_that_match_nothing_are_listed(recipe: Path) -> None:
    config = load_recipe(recipe, ['train.optimizer.groups=[{match: blocks.2.*}, {match: "*.bias"}]'])
    with pytest.raises(InputError) as caught:
        refuse_unmatched_groups(config)
    first, second = str(caught.value).splitlines()
    assert first.startswith("train.optimizer.groups[0].match='blocks.2.*' matches no parameter.")
    assert second.startswith("train.optimizer.groups[1].match='*.bias' matches no parameter.")


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_the_command_refuses_them_before_it_reads_the_data(recipe: Path, command: str) -> None:
    done = CliRunner().invoke(app, [command, str(recipe), "--set", 'train.optimizer.groups=[{match: "*.atention.*"}]'])
    assert done.exit_code == 2
    assert "blocks.*.attention" in done.output


def test_errors_in_groups_have_the_full_field_name(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.optimizer\.groups\.0\.lr = -1: .*greater than or equal to 0"):
        load_recipe(recipe, ["train.optimizer.groups=[{match: a, lr: -1}]"])
    with pytest.raises(RecipeError, match=r"did you mean train\.optimizer\.groups\.0\.match"):
        load_recipe(recipe, ["train.optimizer.groups=[{math: a}]"])
