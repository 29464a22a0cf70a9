"""Recipes of sweeps: what is refused, before anything runs and all at once."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from data.feed.spec import FeedSpec
from data.prepared import Pins
from model.optim.config import OptimizerConfig
from orchestrator.config.load import load_recipe
from orchestrator.driver.prepare import prepared
from orchestrator.errors import RecipeError
from orchestrator.run.run import reaching_storage, stores
from orchestrator.sweep.best import write_best
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.new_trials import continued_point
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial_record import Report, TrialRecord, TrialRun
from tests.recipes import tiny_recipe, write_text

ROOT = Path(__file__).parents[3]

RUN = tiny_recipe(
    **{"data.validation_fraction": 0.1, "train.steps": 100, "train.global_batch_size": 8, "train.micro_batch_size": 4}
)
SWEEP = {"sweep": "s", "recipe": RUN, "space": {"train.lr": {"loguniform": [1e-4, 1e-2]}}}


def load(folder: Path, *overrides: str, **changes: Any) -> Sweep:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return load_sweep(path, overrides, tries_points=True)


def test_the_recipe_that_comes_with_the_project_is_a_sweep() -> None:
    sweep = load_sweep(ROOT / "recipes" / "sweep.yaml", tries_points=True)
    assert sweep.trials == 16
    assert set(sweep.spec.space["train.optimizer.name"].values or ()) == {"sgd", "adam", "adamw"}


def test_a_trial_is_the_base_run_with_its_point_in_place(tmp_path: Path) -> None:
    sweep = load(tmp_path, "train.steps=50", "searcher.trials=3", set={"train.grad_clip": 0.5})
    config = sweep.config_of({"train.lr": 5e-3}, "s-t001")
    assert (config.run, config.train.lr, config.train.steps, config.train.grad_clip) == ("s-t001", 5e-3, 50, 0.5)
    assert sweep.trials == 3


def test_another_optimizer_does_not_take_over_the_constants_of_the_recipes_one(tmp_path: Path) -> None:
    written = {"name": "adamw", "betas": [0.9, 0.99], "weight_decay": 0.1, "eps": 1e-6}
    run = {**RUN, "train": {**RUN["train"], "optimizer": written}}
    space = {"train.optimizer.name": {"choice": ["sgd", "adam", "adamw"]}, "train.lr": {"loguniform": [1e-4, 1e-2]}}
    sweep = load(tmp_path, recipe=run, space=space, set={"train.optimizer.eps": 1e-7})
    adamw, adam, sgd = (
        sweep.config_of({"train.optimizer.name": name, "train.lr": 1e-3}, "s-t001").train.optimizer
        for name in ("adamw", "adam", "sgd")
    )
    assert (adamw.betas, adamw.weight_decay) == ((0.9, 0.99), 0.1)
    assert (adam.betas, adam.weight_decay, sgd.weight_decay) == ((0.9, 0.95), 0.0, 0.0)
    assert adamw.eps == adam.eps == 1e-7
    own = sweep.config_of({"train.optimizer.name": "adam", "train.optimizer.weight_decay": 0.1}, "s-t001")
    assert own.train.optimizer.weight_decay == 0.1


@pytest.mark.parametrize(
    ("field", "domain"),
    [
        ("train.global_batch_size", {"choice": [8, 16]}),
        ("train.label_smoothing", {"choice": [0.0, 0.1]}),
        ("model.dropout", {"uniform": [0.0, 0.3]}),
    ],
)
def test_training_losses_that_measure_different_things_are_not_compared(
    tmp_path: Path, field: str, domain: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=rf"space.{field}: not with metric = train_loss, since .* val_loss"):
        load(tmp_path, space={field: domain})
    load(tmp_path, space={field: domain}, metric="val_loss", set={"eval.every_steps": 10})


WEIGHTS = {"data.sources.1.weight": {"loguniform": [0.1, 10.0]}, "train.lr": {"loguniform": [1e-4, 1e-2]}}
MIXED = {**RUN, "data": {**RUN["data"], "sources": [{"path": "a"}, {"path": "b", "weight": 2}]}}


def test_the_weights_of_a_mixture_are_searched_by_held_out_loss(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    val = {"recipe": MIXED, "metric": "val_loss", "set": {"eval.every_steps": 10}}
    sweep = load(tmp_path, space=WEIGHTS, **val)
    point = {"data.sources.1.weight": 0.5, "train.lr": 1e-3}
    config = sweep.config_of(point, "s-t001")
    assert [(source.path, source.weight) for source in config.data.sources] == [("a", 1.0), ("b", 0.5)]
    record = TrialRecord(1, [TrialRun("s-t001", point)], "finished", reports=[Report(1, 100, 2.0, 1.0, 0.0)])
    best = load_recipe(write_best(sweep, record, "2.0"))
    assert best.data.sources[1].weight == 0.5 and best.train.lr == 1e-3
    # Under a donor's state, the mixture stays: it decides which samples come next.
    moved = continued_point(sweep, TrialRecord(2, []), point)
    assert moved["data.sources.1.weight"] == 0.5 and moved["train.lr"] != 1e-3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": "train_loss"}, "space.data.sources.1.weight: not with metric = train_loss"),
        ({"recipe": RUN}, "space.data.sources.1.weight: there are 1 sources, from 0"),
        (
            {"set": {"eval.every_steps": 10, "data.sources.0.split": "validation"}},
            "space.data.sources.1.weight: no other source is trained on",
        ),
        (
            {"set": {"eval.every_steps": 10, "data.sources.1.split": "validation"}},
            "space.data.sources.1.weight: all of the source's documents are held out",
        ),
        (
            {"space": {"data.sources.1.weight": {"uniform": [0.0, 1.0]}}},
            "a trial with data.sources.1.weight=0.0 would be refused",
        ),
        (
            {"space": {"data.sources.1.weight": {"loguniform": [1e-4, 1.0]}}},
            "a trial with data.sources.1.weight=0.0001 would be refused: data.sources.1.weight=0.0001 is less than",
        ),
        (
            {"space": {"data.sources.1.path": {"choice": ["a", "b"]}}},
            "space.data.sources.1.path: cannot be searched",
        ),
    ],
)
def test_weights_that_cannot_be_compared_or_change_nothing_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    val = {"recipe": MIXED, "metric": "val_loss", "set": {"eval.every_steps": 10}, "space": WEIGHTS}
    with pytest.raises(RecipeError) as refused:
        load(tmp_path, **{**val, **changes})
    assert problem in str(refused.value)


def test_prepared_data_are_used_with_the_weights_of_each_trial(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_text(tmp_path / name, documents=2, words=40)
    changes = {"set": {"eval.every_steps": 10, "data.prepare": "streaming", "storage": str(tmp_path / "kept")}}
    sweep = load(tmp_path, space=WEIGHTS, recipe=MIXED, metric="val_loss", **changes)
    data = prepared(sweep.base, stores(sweep.base)[0], Pins(), lambda line: None, lambda: None)
    own = data.with_weights(sweep.config_of({"data.sources.1.weight": 3.0}, "s-t001").data)
    quotas = [FeedSpec.order_of(each.manifest, each.job.data, 0).quotas.tolist() for each in (data, own)]
    assert quotas == [[333, 667], [250, 750]]
    assert own.digests == data.digests
    unit = data.manifest.unit(0)
    assert own.job.cache_key(unit) == data.job.cache_key(unit)


def test_a_space_is_refused_where_most_of_its_inside_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        RecipeError, match=r"% of the trials would be refused, such as one with model.d_model=\d+: .*choice"
    ):
        load(tmp_path, space={"model.d_model": {"int": [64, 128]}}, set={"model.n_heads": 4})
    sweep = load(tmp_path, space={"model.d_model": {"choice": [64, 72]}, "train.lr": {"loguniform": [1e-4, 1e-2]}})
    assert sweep.trials == 16 and capsys.readouterr().err == ""


def test_a_grid_of_too_many_points_is_refused_before_it_is_made(tmp_path: Path) -> None:
    many = {
        "train.lr": {"choice": [1 / number for number in range(1, 400)]},
        "train.grad_clip": {"choice": [*range(1, 400)]},
    }
    with pytest.raises(RecipeError, match=r"space: a grid of up to 159,201 points; at most 100,000"):
        load(tmp_path, space=many, searcher={"name": "grid", "trials": 16})


def test_given_points_and_grids_are_tried_before_anything_runs(tmp_path: Path) -> None:
    space = {"model.n_heads": {"int": [1, 4]}, "train.lr": {"loguniform": [1e-4, 1e-2]}}
    with pytest.raises(RecipeError, match=r"a trial with model.n_heads=3, .*train.lr=.* would be refused"):
        load(tmp_path, space=space, searcher={"name": "random", "points": [{"model.n_heads": 3}]})
    with pytest.raises(RecipeError, match=r"a trial with model.n_heads=3, .* would be refused"):
        load(tmp_path, space=space, searcher={"name": "grid"})


def test_every_optimizer_can_be_searched_over(tmp_path: Path) -> None:
    names = list(get_args(OptimizerConfig.model_fields["name"].annotation))
    space: dict[str, Any] = {
        "train.optimizer.name": {"choice": names},
        "train.optimizer.alpha": {"uniform": [0.9, 0.99], "when": {"train.optimizer.name": "rmsprop"}},
        "train.optimizer.momentum": {"choice": [0.0, 0.9], "when": {"train.optimizer.name": ["sgd", "muon"]}},
        "train.optimizer.adamw_lr": {"loguniform": [0.1, 1.0], "when": {"train.optimizer.name": "muon"}},
        "train.ema_decay": {"choice": [None, 0.99]},
    }
    sweep = load(tmp_path, space=space)
    betas = {name: sweep.config_of({"train.optimizer.name": name}, "t").train.optimizer.betas for name in names}
    assert betas.pop("lion") == (0.9, 0.99) and set(betas.values()) == {(0.9, 0.95)}


def test_a_recipe_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    assert load(tmp_path, recipe="run.yaml").base.model.n_layers == 2


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"space": {"train.learning": {"choice": [1]}}}, ["space.train.learning: there is no such field"]),
        (
            {"space": {"trian.lr": {"choice": [1]}, "train.lr": {"uniform": [2, 1]}}},
            ["space.train.lr", "the first is above the second"],
        ),
        (
            {"space": {"lr": {"choice": [1]}, "seed": {"choice": [1, 2]}, "data.seq_len": {"choice": [64]}}},
            ["did you mean train.lr", "space.seed: cannot be searched", "space.data.seq_len: cannot be searched"],
        ),
        ({"space": {"checkpoint.keep": {"choice": [1]}}}, ["does not change what a run learns"]),
        ({"space": {"train.lr": {"uniform": [-1, 1]}}}, ["a trial with train.lr=-1.0 would be refused: train.lr"]),
        (
            {"space": {"train.micro_batch_size": {"choice": [4, 3]}}},
            ["a trial with train.micro_batch_size=3 would be refused", "not a multiple"],
        ),
        (
            {"space": {"train.optimizer.nesterov": {"choice": [False, True]}}},
            ["a trial with train.optimizer.nesterov=True would be refused", "needs name=sgd"],
        ),
        (
            {"space": {"train.lr": {"uniform": [0.1, 1], "when": {"train.optimizer.name": "sgd"}}}},
            ["train.optimizer.name is not in the space"],
        ),
        ({"searcher": {"points": [{"train.lr": 1.0, "x": 1}]}}, ["not in the space", "points.0.x: not a field"]),
        ({"metric": "val_loss"}, ["eval.every_steps is null"]),
        ({"scheduler": {"name": "asha", "grace_steps": 100}}, ["not less than a trial's steps"]),
        ({"scheduler": {"name": "pbt"}, "searcher": {"name": "random", "trials": 1}}, ["at least 2"]),
        ({"scheduler": {"name": "pbt"}}, ["searcher.name = optuna: pbt starts all trials at once"]),
        ({"searcher": {"repeats": 2}, "scheduler": {"name": "median"}}, ["searcher.repeats = 2: not with median"]),
        ({"plateau": {"trials": 4}, "scheduler": {"name": "hyperband"}}, ["plateau.trials = 4: not with hyperband"]),
        ({"searcher": {"name": "grid", "from": "early"}}, ["searcher.from = early: not with grid"]),
        ({"searcher": {"from": "s"}}, ["searcher.from = s: is this sweep"]),
        ({"plateau": {"trials": 16}}, ["plateau.trials = 16: not less than the number of points, 16"]),
        ({"searchr": {}}, ["searchr: there is no such field; did you mean searcher"]),
    ],
)
def test_a_wrong_sweep_is_refused_with_all_its_problems(
    tmp_path: Path, changes: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(RecipeError) as refused:
        load(tmp_path, **changes)
    for problem in problems:
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (
            {"train": {"lr": {"uniform": [0, 1]}}},
            "space.train: fields of a section are written with dots, as in train.lr",
        ),
        ({"train": {"optimizer": {"name": {"choice": ["sgd"]}}}}, "as in train.optimizer: …"),
        ({"train.lr": [0.1, 0.2]}, "space.train.lr = [0.1, 0.2]: a list is no domain; write {choice: [0.1, 0.2]}"),
        ({"train.lr": 0.1}, "space.train.lr = 0.1: not a domain; write {choice: [a, b]}"),
        (
            {"train.lr": {"loguniforn": [0.1, 0.2]}},
            "lr.loguniforn: no kind of domain; did you mean loguniform?",
        ),
        ({"train.lr": {"normal": [0.1, 0.2]}}, "space.train.lr.normal: no kind of domain: {choice: [a, b]}"),
        ({"train.steps": {"int": [1, 10**340]}}, "the bounds must be finite"),
    ],
)
def test_what_is_no_domain_is_told_with_what_to_write(tmp_path: Path, space: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(tmp_path, space=space)
    assert says in str(raised.value) and "no such field" not in str(raised.value)


def test_what_decides_the_result_is_pinned_and_the_number_of_trials_is_not(tmp_path: Path) -> None:
    fields = load(tmp_path).result_fields()
    assert load(tmp_path, "searcher.trials=40", "max_concurrent=1", "scaling.max_workers=2").result_fields() == fields
    assert load(tmp_path, "searcher.seed=4").result_fields() != fields
    assert load(tmp_path, "train.grad_clip=2").result_fields() != fields


def test_the_sweep_that_trials_get_has_no_keys_wherever_they_were_written(tmp_path: Path) -> None:
    keys = {"access_key_id": "planted-access-key", "secret_access_key": "planted-secret-key"}
    run = {**RUN, "storage": "s3://bucket/a", "store": keys}
    sweep = load(
        tmp_path, "store.secret_access_key=planted-by-set", recipe=run, set={"store.access_key_id": "planted-2"}
    )
    with reaching_storage(sweep.base) as base:
        reached = sweep.reaching(base)
        passed_on = pickle.dumps(reached)
        assert b"planted" not in passed_on and b"access_key_id" not in pickle.dumps((reached.document, reached.full))
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "planted-by-set"
        assert reached.config_of({"train.lr": 1e-3}, "t").store == base.store
    assert sweep.document["store"]["secret_access_key"] == "planted-by-set"


def test_an_empty_heading_of_the_recipe_is_one_of_defaults(tmp_path: Path) -> None:
    run = {**RUN, "train": {**RUN["train"], "optimizer": None}}
    sweep = load(tmp_path, recipe=run, space={"train.optimizer.name": {"choice": ["sgd", "adamw"]}})
    assert sweep.config_of({"train.optimizer.name": "sgd"}, "s-t001").train.optimizer.name == "sgd"


def test_an_element_that_a_list_does_not_have_is_refused(tmp_path: Path) -> None:
    run = {**RUN, "train": {**RUN["train"], "optimizer": {"groups": [{"match": "*norm*"}]}}}
    with pytest.raises(RecipeError, match="valid indices are 0 to 1"):
        load(tmp_path, recipe=run, space={"train.optimizer.groups.2.lr": {"uniform": [0.1, 1.0]}})
