"""Fields under their old names: read from recipes, overrides, sweeps and stored fields, with one notice each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.stores.local import LocalStore
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import REMEMBERED, remember_recipe
from orchestrator.config.renamed import RENAMED, new_name, with_new_names
from orchestrator.config.result_fields import differing_fields, resolved, result_fields
from orchestrator.config.schema import section_of
from orchestrator.errors import RecipeError
from orchestrator.run.record import RunRecord
from orchestrator.sweep.best import find_sweep, remember_sweep
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.records import TrialBook
from orchestrator.sweep.spec import Sweep
from orchestrator.sweep.trial_record import TrialRecord
from tests.orchestrator.run.builders import record_of
from tests.recipes import tiny_recipe, write_recipe

STORED_SWEEP = Path(__file__).parents[2] / "end_to_end/stored_runs/sweep/storage/sweeps/sweep"

VALUES: dict[str, Any] = {
    "data.steps": [{"step": "lowercase"}],
    "eval.beside": False,
    "eval.translate_on_the_way": 7,
}
"""A value for every old name, other than the default."""


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a dotted field in JSON types, list elements by the fields that were written."""
    section, field = name.split(".")
    value = resolved(config)[section][field]
    return [{"step": each["step"]} for each in value] if isinstance(value, list) else value


def notice(old: str) -> str:
    return f"{old} is now called {RENAMED[old]}; the old name is read until version 0.3"


def sweep_recipe(folder: Path, **fields: Any) -> Path:
    sweep = {"sweep": "s", "recipe": tiny_recipe(), "space": {"train.lr": {"loguniform": [1e-4, 1e-2]}}}
    return write_recipe(folder / "sweep.yaml", sweep | fields)


def test_every_old_name_has_a_value_here() -> None:
    assert VALUES.keys() == RENAMED.keys()


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_new_name_is_a_field_and_the_old_one_is_not(old: str, new: str) -> None:
    for name, is_field in ((old, False), (new, True)):
        section, field = name.split(".")
        model = section_of(RunConfig.model_fields[section].annotation)
        assert model is not None
        assert (field in model.model_fields) is is_field


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.steps", "data.cleaning"),
        ("data.steps.0.step", "data.cleaning.0.step"),
        ("run.data.steps.0.step", "run.data.cleaning.0.step"),
        ("eval.translate_on_the_way", "eval.translate_during_training"),
        ("train.steps", "train.steps"),
        ("data.steps_more", "data.steps_more"),
        ("run", "run"),
        ("data", "data"),
    ],
)
def test_new_name(old: str, new: str) -> None:
    assert new_name(old) == new
    assert with_new_names({old: 1}) == {new: 1}


class TestRecipe:
    @pytest.mark.parametrize("old", RENAMED)
    def test_a_file_may_use_the_old_name_with_one_notice(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str
    ) -> None:
        path = write_recipe(tmp_path / "old.yaml", tiny_recipe(**{old: VALUES[old]}))
        assert value_of(load_recipe(path), RENAMED[old]) == VALUES[old]
        assert capsys.readouterr() == ("", f"{path}: {notice(old)}\n")

    @pytest.mark.parametrize("old", RENAMED)
    def test_an_override_may_use_the_old_name_with_one_notice(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str
    ) -> None:
        path = write_recipe(tmp_path / "new.yaml", tiny_recipe())
        config = load_recipe(path, [f"{old}={json.dumps(VALUES[old])}"])
        assert value_of(config, RENAMED[old]) == VALUES[old]
        assert capsys.readouterr() == ("", f"--set: {notice(old)}\n")

    def test_an_override_replaces_the_value_of_the_file_whatever_names_they_use(self, tmp_path: Path) -> None:
        for old, new in RENAMED.items():
            for in_file, override in ((old, new), (new, old)):
                path = write_recipe(tmp_path / "mixed.yaml", tiny_recipe(**{in_file: VALUES[old]}))
                config = load_recipe(path, [f"{override}={json.dumps(VALUES[old])}"])
                assert value_of(config, new) == VALUES[old]

    def test_an_override_may_reach_into_the_old_name(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path / "old.yaml", tiny_recipe(**{"data.steps": [{"step": "unicode"}]}))
        config = load_recipe(path, ["data.steps.0.form=NFKC"])
        assert resolved(config)["data"]["cleaning"][0]["form"] == "NFKC"

    def test_an_override_of_a_whole_section_may_use_the_old_name(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_recipe(tmp_path / "new.yaml", tiny_recipe())
        assert load_recipe(path, ["eval={beside: false}"]).eval.background is False
        assert capsys.readouterr().err == f"--set: {notice('eval.beside')}\n"

    @pytest.mark.parametrize("old", RENAMED)
    def test_both_names_are_a_problem(self, tmp_path: Path, old: str) -> None:
        both = tiny_recipe(**{old: VALUES[old], RENAMED[old]: VALUES[old]})
        with pytest.raises(RecipeError) as caught:
            load_recipe(write_recipe(tmp_path / "both.yaml", both))
        (problem,) = str(caught.value).splitlines()[1:]
        assert problem == f"  {old}: now called {RENAMED[old]}, which is set too. Leave {old} out."

    def test_present_names_print_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fields = tiny_recipe(**{RENAMED[old]: value for old, value in VALUES.items()})
        load_recipe(write_recipe(tmp_path / "new.yaml", fields), ["eval.background=true", "train.steps=8"])
        assert capsys.readouterr() == ("", "")

    def test_a_remembered_recipe_of_an_earlier_version_prints_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        remember_recipe("old", tiny_recipe(**VALUES))
        assert load_recipe(REMEMBERED / "old.yaml").eval.translate_during_training == 7
        assert capsys.readouterr() == ("", "")


class TestSweep:
    def loaded(self, path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[Sweep, list[str]]:
        """The sweep, and the lines on standard error."""
        sweep = load_sweep(path, overrides)
        out, err = capsys.readouterr()
        assert out == ""
        return sweep, err.splitlines()

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_set(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_nested: bool) -> None:
        nested: dict[str, Any] = {"data": {"steps": [{"step": "lowercase"}]}, "eval": {"beside": False}}
        dotted = {"data.steps": [{"step": "lowercase"}], "eval.beside": False}
        path = sweep_recipe(tmp_path, set=nested if is_nested else dotted)
        sweep, lines = self.loaded(path, capsys)
        assert value_of(sweep.base, "data.cleaning") == [{"step": "lowercase"}]
        assert sweep.base.eval.background is False
        assert lines == [f"{path}: {notice(old)}" for old in ("data.steps", "eval.beside")]

    def test_the_recipe_of_the_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = write_recipe(tmp_path / "run.yaml", tiny_recipe(**VALUES))
        sweep, lines = self.loaded(sweep_recipe(tmp_path, recipe="run.yaml"), capsys)
        assert sweep.base.eval.translate_during_training == 7
        assert lines == [f"{run}: {notice(old)}" for old in RENAMED]
        path = sweep_recipe(tmp_path, recipe=tiny_recipe(**VALUES))
        assert self.loaded(path, capsys)[1] == [f"{path}: {notice(old)}" for old in RENAMED]

    def test_overrides(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sweep, lines = self.loaded(sweep_recipe(tmp_path), capsys, "eval.beside=false")
        assert sweep.base.eval.background is False
        assert lines == [f"--set: {notice('eval.beside')}"]

    def test_a_set_field_replaces_that_of_the_run_whatever_names_they_use(self, tmp_path: Path) -> None:
        run = tiny_recipe(**{"eval.beside": True})
        assert load_sweep(sweep_recipe(tmp_path, recipe=run, set={"eval.background": False})).base.eval.background is (
            False
        )

    def test_space_and_points_are_checked_under_the_new_names(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each renamed field is the same for all trials, so the only thing to see is which name the problem has."""
        path = sweep_recipe(
            tmp_path,
            space={"eval.beside": {"choice": [True, False]}},
            searcher={"points": [{"eval.translate_on_the_way": 1}]},
        )
        with pytest.raises(RecipeError) as caught:
            load_sweep(path)
        assert "space.eval.background: cannot be searched" in str(caught.value)
        assert "searcher.points.0.eval.translate_during_training: not a field of the space" in str(caught.value)
        found = [f"{path}: {notice(old)}" for old in ("eval.beside", "eval.translate_on_the_way")]
        assert capsys.readouterr().err.splitlines() == found

    @pytest.mark.parametrize(
        ("where", "fields"),
        [
            ("set", {"set": {"eval.beside": True, "eval.background": True}}),
            ("searcher.points.0", {"searcher": {"points": [{"eval.beside": True, "eval.background": True}]}}),
            ("space", {"space": {name: {"choice": [True]} for name in ("eval.beside", "eval.background")}}),
        ],
    )
    def test_both_names_are_a_problem(self, tmp_path: Path, where: str, fields: dict[str, Any]) -> None:
        with pytest.raises(RecipeError) as caught:
            load_sweep(sweep_recipe(tmp_path, **fields))
        assert f"  {where}.eval.beside: now called eval.background, which is set too." in str(caught.value)

    def test_both_names_in_the_recipe_of_the_run_are_a_problem(self, tmp_path: Path) -> None:
        both = tiny_recipe(**{"eval.beside": True, "eval.background": True})
        with pytest.raises(RecipeError, match=r"  eval\.beside: now called eval\.background, which is set too"):
            load_sweep(sweep_recipe(tmp_path, recipe=both))

    def test_a_remembered_sweep_prints_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        remember_sweep(load_sweep(sweep_recipe(tmp_path)))
        remembered = find_sweep("s")
        stored = remembered.read_text().replace("background", "beside")
        remembered.write_text(stored.replace("recipe:\n", "recipe:\n  eval: {beside: false}\n"))
        capsys.readouterr()
        sweep, lines = self.loaded(remembered, capsys)
        assert sweep.base.eval.background is False
        assert lines == []


class TestStored:
    """Records that version 0.1.0 wrote."""

    def test_result_fields_of_a_run(self, tmp_path: Path) -> None:
        config = load_recipe(write_recipe(tmp_path / "new.yaml", tiny_recipe(**VALUES)))
        old_name = {new: old for old, new in RENAMED.items()}
        stored = {}
        for name, value in result_fields(config).items():
            new = next((each for each in old_name if name == each or name.startswith(each + ".")), "")
            stored[old_name.get(new, "") + name.removeprefix(new)] = value
        assert "data.steps.0.step" in stored and "eval.translate_on_the_way" in stored
        record = RunRecord.from_json(dataclasses.replace(record_of(0), result_fields=stored).to_json())
        assert record.result_fields == result_fields(config)
        assert differing_fields(record.result_fields, result_fields(config)) == []

    def test_trials_of_a_stored_sweep(self) -> None:
        book = TrialBook(LocalStore(str(STORED_SWEEP)))
        assert len(book) == 3
        for record in book:
            assert record.trial_run.run == f"sweep-{record.id}" and record.loss is not None
            assert TrialRecord.from_json(record.to_json()) == record

    def test_points_of_a_trial(self) -> None:
        stored = {
            "number": 1,
            "stints": [{"run": "s-t001", "point": {"data.steps": [], "train.lr": 0.1}, "donor": None, "step": 4}],
            "reports": [{"number": 1, "step": 4, "loss": 2.0, "worker_s": 1.0, "at": 0.0, "stint": 0, "attempt": 1}],
        }
        record = TrialRecord.from_json(json.dumps(stored).encode())
        assert record.point == {"data.cleaning": [], "train.lr": 0.1}
        assert (record.trial_run.step, record.reports[0].trial_run) == (4, 0)
