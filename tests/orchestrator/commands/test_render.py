"""`manta cluster render`: what could not run in a cluster is refused here, all at once, and no key gets out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data.errors import InputError
from orchestrator.cli.main import app
from orchestrator.commands.render import render
from orchestrator.driver import train as run
from orchestrator.errors import RecipeError
from tests.recipes import tiny_recipe

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "recipes/clusters/gpu-spot.yaml"
USUAL = tiny_recipe(run="night", storage="s3://bucket/manta", **{"data.sources": [{"path": "s3://bucket/corpus/"}]})


def recipe_of(folder: Path, **fields: Any) -> Path:
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump(USUAL | fields))
    return path


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        render(EXAMPLE, recipe=recipe, overrides=overrides)
    return str(error.value)


def test_the_command_prints_manifests_and_nothing_else(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    done = CliRunner().invoke(
        app, ["cluster", "render", str(EXAMPLE), "--recipe", str(recipe), "--set", "cluster=mine"]
    )
    assert done.exit_code == 0, done.output
    recipe_map, job = yaml.safe_load_all(done.stdout)
    assert (recipe_map["kind"], job["kind"], job["metadata"]["name"]) == ("ConfigMap", "RayJob", "night")
    assert recipe_map["data"]["recipe.yaml"] == recipe.read_text()


def test_the_jobs_command_is_one_that_manta_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    _, job = yaml.safe_load_all(render(EXAMPLE, recipe=recipe))
    calls: list[Any] = []
    monkeypatch.setattr(run, "train", lambda config, **how: calls.append((config, how)))
    program, *arguments = shlex.split(job["spec"]["entrypoint"].replace("/etc/manta/recipe.yaml", str(recipe)))
    done = CliRunner().invoke(app, arguments)
    assert program == "manta" and done.exit_code == 0, done.output
    [(config, how)] = calls
    assert config.storage == "s3://my-bucket/manta" and how["wait_s"] == 180 and how["takeover"] is False


def test_a_recipe_with_keys_is_refused_and_they_are_not_shown(tmp_path: Path) -> None:
    keys = {"access_key_id": "AKIA-mine", "secret_access_key": "the-secret-itself"}
    said = refused(recipe_of(tmp_path, store=keys))
    assert "2 problems" in said and "store.secret_access_key: a key must not be in a manifest" in said
    assert "service_account" in said and "the-secret-itself" not in said and "AKIA-mine" not in said


def test_secrets_are_known_by_their_value_and_by_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted-value-1")
    said = refused(recipe_of(tmp_path), "environment.HARMLESS=planted-value-1")
    assert "the result would contain the value of MY_SERVICE_TOKEN" in said and "planted-value-1" not in said
    with pytest.raises(RecipeError, match="MY_SERVICE_TOKEN"):
        render(EXAMPLE, to="vm", overrides=["secrets={}", "environment.HARMLESS=a planted-value-1"])
    recipe = recipe_of(tmp_path)
    recipe.write_text(f"# mine: {'AKIA' + 'ABCDEFGH' * 2}\n{recipe.read_text()}")
    said = refused(recipe)
    assert "the file contains an AWS access key" in said and "ABCDEFGH" not in said


def test_a_spec_without_room_for_the_node_is_warned_about_beside_the_manifests(tmp_path: Path) -> None:
    command = ["cluster", "render", str(EXAMPLE), "--recipe", str(recipe_of(tmp_path))]
    done = CliRunner().invoke(app, [*command, "--set", "groups.1.cpus=8", "--set", "groups.1.memory=32Gi"])
    assert done.exit_code == 0 and "warning: " not in done.stdout
    assert "warning: " in done.stderr and "what fits: cpus: 7, memory: 27Gi" in done.stderr
    assert "warning: " not in CliRunner().invoke(app, command).stderr


def test_what_only_this_machine_has_is_refused_all_at_once(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        storage="runs/",
        store={"serve": ".manta/s3"},
        data={"sources": [{"path": "corpus/"}, {"path": "s3://bucket/a"}], "tokenizer": {"path": "/mine/t.json"}},
    )
    said = refused(recipe, "store.url=null")
    assert "4 problems" in said
    for word in ("storage = 'runs/'", "store.serve", "data.sources.0.path = 'corpus/'", "data.tokenizer.path"):
        assert word in said


def test_the_specs_bucket_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    assert "--set storage=s3://my-bucket/manta" in render(EXAMPLE, recipe=recipe_of(tmp_path, storage="runs/"))


def test_what_the_image_must_hold_is_said(tmp_path: Path) -> None:
    steps = [{"step": "segment"}, {"step": "function", "path": "mine.cleaning.urls"}]
    data, observe = {**USUAL["data"], "steps": steps}, {"wandb": {"project": "mine"}}
    text = render(EXAMPLE, recipe=recipe_of(tmp_path, data=data, observe=observe))
    said = [line for line in text.splitlines() if line.startswith("# The image must contain")]
    assert len(said) == 2 and "--build-arg EXTRAS=text,wandb" in said[0] and "the module mine.cleaning" in said[1]
    assert "# The image must contain" not in render(EXAMPLE, recipe=recipe_of(tmp_path))


def test_a_broken_recipe_fails_here(tmp_path: Path) -> None:
    assert "train.steps" in refused(recipe_of(tmp_path, train={**USUAL["train"], "steps": 0}))


def test_a_recipe_that_kubernetes_would_not_take(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    recipe.write_text(recipe.read_text() + "#" * 950_000)
    assert "Kubernetes limits a ConfigMap to 1 MiB" in refused(recipe)


def test_a_spec_that_lacks_something_says_all_of_it() -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)4 problems.*image: missing.*head.instance_type.*groups.1.instance_type"
    ):
        render(ROOT / "recipes/clusters/local.yaml", to="vm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"A RayJob runs one recipe: give --recipe RECIPE"),
        ({"to": "slurm"}, r"--to slurm: there are kuberay, vm"),
        ({"kind": "rayservice"}, r"--kind rayservice: there are rayjob, raycluster"),
        ({"to": "vm", "kind": "rayjob"}, r"--kind rayjob: .* for --to kuberay"),
        (
            {"kind": "raycluster", "recipe": Path("mine.yaml")},
            r"only a RayJob runs a recipe. .* manta submit mine.yaml",
        ),
        ({"to": "vm", "recipe": Path("mine.yaml")}, r"only a RayJob runs a recipe"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(EXAMPLE, **options)
