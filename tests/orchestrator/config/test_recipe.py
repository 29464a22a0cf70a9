"""Recipes: all problems at once, each with its name; what may change when a run continues; the schema."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import find_recipe
from orchestrator.config.result_fields import differing_fields, resolved, result_fields
from orchestrator.config.schema import fields_of, markdown, nearest_name
from orchestrator.errors import RecipeError, UnknownRunError
from orchestrator.sweep.best import find_sweep
from tests.recipes import tiny_recipe

GOOD: dict[str, Any] = tiny_recipe(
    run="first",
    storage="s3://bucket/manta",
    data={"sources": [{"path": "s3://bucket/text"}], "tokenizer": {"vocab_size": 1024}},
    **{"train.steps": 100, "train.global_batch_size": 16},
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The problem lines of the error that loading raises, without the heading."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_status == 2
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{path}: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return [line.removeprefix("  ") for line in lines]


def problems_shown(path: Path) -> list[str]:
    """The lines of the message of a recipe with more problems than are described."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return [line.removeprefix("  ") for line in str(caught.value).splitlines()[1:]]


class TestLoading:
    def test_defaults_and_derived_values(self, recipe: Path) -> None:
        config = load_recipe(recipe)
        assert config.run == "first"
        assert config.train.micro_batches_per_step == 8
        assert config.scaling.threads == 1
        assert (config.seed, config.train.grad_clip, config.checkpoint.keep) == (0, 1.0, 3)

    @pytest.mark.parametrize(
        ("text", "value"),
        [("3e-4", 3e-4), ("1E-2", 0.01), ("+2.5e-3", 0.0025), ("1.e-1", 0.1), (".5e-1", 0.05), ("1", 1)],
    )
    def test_numbers_as_people_write_them(self, recipe: Path, text: str, value: float) -> None:
        assert load_recipe(recipe, [f"train.lr={text}"]).train.lr == value
        recipe.write_text(recipe.read_text().replace("lr: 0.001", f"lr: {text}"))
        assert load_recipe(recipe).train.lr == value

    def test_text_that_only_resembles_a_number_stays_text(self, recipe: Path) -> None:
        assert load_recipe(recipe, ["run=e5", "storage=3e"]).run == "e5"

    def test_overrides_reach_any_depth_and_lists(self, recipe: Path) -> None:
        config = load_recipe(
            recipe,
            [
                "train.schedule.name=constant",
                "data.sources.0.weight=2",
                "data.sources.1.path=/more",
                "eval.every_steps=50",
                "train.grad_clip=null",
                "sample.prompts=['a: b', c]",
                "run=second",
            ],
        )
        assert config.train.schedule.name == "constant"
        assert [(s.path, s.weight) for s in config.data.sources] == [("s3://bucket/text", 2.0), ("/more", 1.0)]
        assert (config.eval.every_steps, config.train.grad_clip, config.run) == (50, None, "second")
        assert config.sample.prompts == ("a: b", "c")

    def test_a_value_may_contain_an_equals_sign(self, recipe: Path) -> None:
        assert load_recipe(recipe, ["storage=/a=b"]).storage == "/a=b"

    def test_an_empty_section_is_all_defaults(self, recipe: Path) -> None:
        recipe.write_text(recipe.read_text() + "\neval:\nobserve:\n")
        assert load_recipe(recipe).eval.every_steps is None

    def test_a_loaded_recipe_survives_json(self, recipe: Path) -> None:
        config = load_recipe(recipe)
        assert RunConfig.model_validate(json.loads(json.dumps(resolved(config)))) == config


class TestProblems:
    def test_all_at_once(self, recipe: Path) -> None:
        recipe.write_text(
            "run: a/b\nstorge: s3://b\nlr: 3e-4\n"
            "data: {sources: [{pth: x, weight: -1}], tokenizer: {kind: bpee}}\n"
            "train: {steps: ten, global_batch_size: 500, micro_batch_size: 8}\n"
            "scaling: {num_workers: 0}\n"
        )
        found = problems(recipe, "nonsense", "data.sources.7.path=x")
        expected = [
            "--set nonsense: must be NAME=VALUE",
            "--set data.sources.7.path: data.sources is a list; valid indices are 0 to 1",
            'run = "a/b": ',
            "storage: missing",
            "storge: there is no such field; did you mean storage?",
            "lr: there is no such field; did you mean train.lr?",
            "train.lr: missing",
            'train.steps = "ten": should be a valid integer',
            "data.sources.0.path: missing",
            "data.sources.0.pth: there is no such field; did you mean data.sources.0.path?",
            "data.sources.0.weight = -1: should be greater than 0",
            "data.tokenizer.kind = \"bpee\": should be 'bpe', 'bytes' or 'chars'",
            "scaling.num_workers = 0: should be greater than or equal to 1",
            "train.global_batch_size = 500: not a multiple of train.micro_batch_size = 8",
        ]
        unseen = [start for start in expected if not any(line.startswith(start) for line in found)]
        assert unseen == []
        assert len(found) == len(expected)

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["train.global_batch_size=500", "train.micro_batch_size=8"], r"62 micro-batches and 4 .* are: 496, 504\."),
            (["train.global_batch_size=3", "train.micro_batch_size=8"], r"Nearest that are: 8\."),
            (["scaling.num_workers=9"], r"scaling\.num_workers = 9: more than the 8 micro-batches .* At most 8"),
            (["scaling.max_workers=9"], r"scaling\.max_workers = 9: more than the 8 micro-batches .* At most 8"),
            (["scaling.min_workers=3", "scaling.max_workers=2"], r"min_workers = 3: more than scaling.max_workers = 2"),
            (["scaling.min_workers=3"], r"scaling\.min_workers = 3: more than scaling\.num_workers = "),
            (["train.schedule.warmup_steps=101"], r"warmup_steps = 101: not shorter than the run, train\.steps = 100"),
            (
                ["train.schedule.name=wsd", "train.schedule.warmup_steps=50", "train.schedule.decay_steps=51"],
                r"decay_steps = 51: .* At most 50\.",
            ),
            (["model.vocab_size=1023"], r"model\.vocab_size = 1023: fewer .* data\.tokenizer\.vocab_size = 1024"),
            (["eval.every_steps=5", "data.validation_fraction=0"], r"eval\.every_steps = 5: no text is held out"),
            (["sample.top_p=1.1"], r"sample\.top_p = 1\.1: should be less than or equal to 1"),
            (["sample.top_p=0"], r"sample\.top_p = 0: should be greater than 0"),
            (["train.lr=.inf"], r"train\.lr = Infinity: should be a finite number"),
            (["scaling.gpus_per_worker=2"], r"gpus_per_worker = 2: should be less than or equal to 1"),
            (["run=007"], r"run = 7: should be a valid string; put it in quotes"),
            (["run=.."], r'run = "\.\.": .*letters, digits'),
            (["model.d_model=63", "model.n_heads=4"], r"model: d_model=63 is not a multiple of n_heads=4"),
            (["train.lr.x=1"], r"--set train\.lr\.x: train\.lr is a number, which has no fields"),
            ([f"data.sources.{'9' * 4400}.path=x"], r"data\.sources is a list; valid indices are 0 to 1"),
            (["train.=1"], r"--set train\.: must be NAME=VALUE"),
            (["storage='x"], r"--set storage: the value is not YAML"),
        ],
    )
    def test_says_what_and_what_next(self, recipe: Path, overrides: list[str], says: str) -> None:
        (line,) = problems(recipe, *overrides)
        assert re.search(says, line)

    @pytest.mark.parametrize("overrides", [["scaling.num_workers=8"], ["model.vocab_size=1024"], ["sample.top_p=1"]])
    def test_the_nearest_valid_value_is_accepted(self, recipe: Path, overrides: list[str]) -> None:
        assert load_recipe(recipe, overrides).run == "first"

    def test_bytes_have_no_vocabulary_to_compare(self, recipe: Path) -> None:
        assert load_recipe(recipe, ["data.tokenizer.kind=bytes", "model.vocab_size=300"]).model.vocab_size == 300

    def test_keys_are_not_shown(self, recipe: Path) -> None:
        (line,) = problems(recipe, "store.secret_access_key=12345678")
        assert line == "store.secret_access_key = (not shown): should be a valid string; put it in quotes"

    @pytest.mark.parametrize(
        "name", ["storage", "store.endpoint_url", "data.sources.0.path", "data.tokenizer.path", "train.init_from"]
    )
    def test_a_password_in_an_address_is_refused_and_not_shown(self, recipe: Path, name: str) -> None:
        found = problems(recipe, f"{name}=https://me:hush@there/x")
        assert any(line.startswith(f"{name}: contains a user name or password") for line in found)
        assert "hush" not in " ".join(found)

    def test_keys_are_not_printed_with_the_config(self, recipe: Path) -> None:
        config = load_recipe(recipe, ["store.secret_access_key=hush-hush", "store.access_key_id=psst"])
        assert config.store.secret_access_key == "hush-hush"
        assert "hush-hush" not in f"{config!r} {config}" and "psst" not in f"{config!r} {config}"

    def test_a_config_built_without_a_recipe_is_checked_too(self) -> None:
        with pytest.raises(ValidationError, match=r"not a multiple of train\.micro_batch_size"):
            RunConfig.model_validate({**GOOD, "train": {**GOOD["train"], "global_batch_size": 15}})


class TestFile:
    def test_a_key_given_twice_is_refused_with_its_place(self, recipe: Path) -> None:
        recipe.write_text("run: a\ntrain:\n  lr: 1\n  lr: 2\n")
        with pytest.raises(
            RecipeError, match=r"first\.yaml:4:3: lr is given twice in this section.*\n      lr: 2\n      \^"
        ):
            load_recipe(recipe)

    def test_what_a_merge_key_brings_may_be_overridden(self, recipe: Path) -> None:
        recipe.write_text(yaml.safe_dump(GOOD) + "\neval: &e {every_steps: 5}\ncheckpoint: {<<: *e, every_steps: 7}\n")
        assert load_recipe(recipe).checkpoint.every_steps == 7

    def test_yaml_errors_show_the_line(self, recipe: Path) -> None:
        recipe.write_text("run: a\ntrain: {lr: 1\nseed: 2\n")
        with pytest.raises(RecipeError, match=r"first\.yaml:3:5: .*\n    seed: 2\n        \^"):
            load_recipe(recipe)

    def test_yaml_errors_show_a_part_of_a_long_line(self, recipe: Path) -> None:
        recipe.write_text("run: [" + "a, " * 9000 + "]: b, " + "c, " * 9000)
        with pytest.raises(RecipeError) as raised:
            load_recipe(recipe)
        problem, shown, caret = str(raised.value).split("\n")
        assert problem.startswith(f"{recipe}:1:") and len(shown) < 150
        assert shown[caret.index("^") - 1 :].startswith("]: b")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"- a\n", r"a recipe maps names to values.*found a list"),
            (b"true: 1\n", r":1:1: a name is expected here, not 'true'"),
            (b"run: \xff\n", r"cannot be read: .*UTF-8"),
            (b"run: !!python/object:os.system {}\n", r":1:6: the tag !!python/object:os.system has no meaning"),
            (b"", r"4 problems\n  run: missing"),
        ],
    )
    def test_what_is_not_a_recipe(self, recipe: Path, content: bytes, says: str) -> None:
        recipe.write_bytes(content)
        with pytest.raises(RecipeError, match=says):
            load_recipe(recipe)

    def test_a_missing_file_names_the_nearest(self, recipe: Path) -> None:
        with pytest.raises(RecipeError, match=r"There is no recipe .*frist\.yaml\. Nearest in .*: first\.yaml\."):
            load_recipe(recipe.with_name("frist.yaml"))
        with pytest.raises(RecipeError, match=r"There are in .*: first\.yaml\."):
            load_recipe(recipe.with_name("zzz"))
        with pytest.raises(RecipeError, match=r"There is no folder .* either"):
            load_recipe(recipe.parent / "nowhere" / "first.yaml")

    def test_a_folder_is_not_a_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="cannot be read"):
            load_recipe(tmp_path)

    def test_a_run_is_found_by_the_recipe_that_names_it(
        self, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (recipe.parent / "broken.yaml").write_text("{")
        os.mkfifo(recipe.parent / "pipe.yaml")  # nobody writes into it
        assert find_recipe("first", recipe.parent) == recipe
        assert find_recipe(str(recipe), recipe.parent) == recipe
        with pytest.raises(UnknownRunError, match=r"second is neither .* Runs known here: first\."):
            find_recipe("second", recipe.parent)
        with pytest.raises(RecipeError, match="There is no recipe"):
            find_recipe("second.yaml", recipe.parent)


class TestContinuing:
    FREE = (
        "run=other",
        "storage=/elsewhere",
        "store.region=eu-central-1",
        "scaling.num_workers=4",
        "checkpoint.keep=9",
        "sample.seed=9",
        "data.prepare=ahead",
    )
    FIXED = (
        ("seed=1", ("seed", 0, 1)),
        ("train.lr=0.1", ("train.lr", 0.001, 0.1)),
        ("train.optimizer.betas=[0.9, 0.99]", ("train.optimizer.betas", [0.9, 0.95], [0.9, 0.99])),
        ("data.sources.0.weight=2", ("data.sources.0.weight", 1.0, 2.0)),
        ("data.sources.0.path=/x", ("data.sources.0.path", "s3://bucket/text", "/x")),
        ("model.dropout=0.5", ("model.dropout", 0.0, 0.5)),
        ("train.ema_decay=0.99", ("train.ema_decay", None, 0.99)),
        ("eval.every_steps=5", ("eval.every_steps", None, 5)),
    )

    @pytest.mark.parametrize("override", FREE)
    def test_free_to_change(self, recipe: Path, override: str) -> None:
        old, new = load_recipe(recipe), load_recipe(recipe, [override])
        assert old != new
        assert differing_fields(result_fields(old), result_fields(new)) == []

    @pytest.mark.parametrize(("override", "difference"), FIXED)
    def test_not_free_to_change(self, recipe: Path, override: str, difference: tuple[str, Any, Any]) -> None:
        old, new = result_fields(load_recipe(recipe)), result_fields(load_recipe(recipe, [override]))
        # The old ones come from a file in a run's folder.
        assert differing_fields(json.loads(json.dumps(old)), new) == [difference]

    def test_a_run_begun_before_there_was_a_field_had_its_default(self, recipe: Path) -> None:
        now = result_fields(load_recipe(recipe))
        old = {name: value for name, value in now.items() if name not in ("data.cleaning", "train.grad_clip")}
        assert differing_fields(old, now) == []
        changed = result_fields(load_recipe(recipe, ["train.grad_clip=2", "data.cleaning=[{step: lowercase}]"]))
        assert sorted(differing_fields(old, changed)) == [
            ("data.cleaning.0.on", None, "both"),
            ("data.cleaning.0.step", None, "lowercase"),
            ("train.grad_clip", 1.0, 2.0),
        ]

    def test_a_source_more_differs(self, recipe: Path) -> None:
        old, new = result_fields(load_recipe(recipe)), result_fields(load_recipe(recipe, ["data.sources.1.path=/y"]))
        assert ("data.sources.1.path", None, "/y") in differing_fields(old, new)

    def test_a_group_of_parameters_more_differs(self, recipe: Path) -> None:
        changed = load_recipe(recipe, ["train.optimizer.groups=[{match: b*}]"])
        old, new = result_fields(load_recipe(recipe)), result_fields(changed)
        assert ("train.optimizer.groups.0.match", None, "b*") in differing_fields(old, new)

    def test_a_field_younger_than_the_run_had_its_default(self, recipe: Path) -> None:
        new = result_fields(load_recipe(recipe, ["train.optimizer.momentum=0.8", "data.sources.1.path=/y"]))
        young = ["train.optimizer.alpha", "train.optimizer.groups", "train.ema_decay", "train.optimizer.momentum"]
        old = {name: value for name, value in new.items() if name not in young and "sources.1." not in name}
        found = differing_fields(old, new)
        assert ("train.optimizer.momentum", 0.9, 0.8) in found and ("data.sources.1.path", None, "/y") in found
        assert {name for name, _, _ in found} == {"train.optimizer.momentum", "data.sources.1.path"}
        in_sweep = {f"run.{name}": value for name, value in new.items()}
        assert (
            differing_fields({k: v for k, v in in_sweep.items() if k != "run.train.optimizer.groups"}, in_sweep) == []
        )

    def test_keys_are_not_kept_with_a_run(self, recipe: Path) -> None:
        config = load_recipe(recipe, ["store.secret_access_key=hush", "store.access_key_id=who"])
        assert "hush" not in json.dumps(resolved(config))
        assert "who" not in json.dumps(resolved(config))


class TestSteps:
    """A list of sections of several kinds: each problem is named as the recipe would name its place."""

    @pytest.mark.parametrize(
        ("written", "problem"),
        [
            (
                "{step: lowercse}",
                'data.cleaning.0.step = "lowercse": there is no such step; did you mean lowercase? There',
            ),
            (
                "lowercase",
                'data.cleaning.0 = "lowercase": needs one of unicode, lowercase, dedup, near_dedup, ',
            ),
            ("{form: NFC}", "data.cleaning.0 = {"),
            ("{step: near_dedup, treshold: 0.7}", "data.cleaning.0.treshold: there is no such field; did you mean "),
            ("{step: language}", "data.cleaning.0.keep: missing. Codes of the languages that are kept"),
            ("{step: unicode, form: NFX}", "data.cleaning.0.form = \"NFX\": should be 'NFC', 'NFD', 'NFKC' or 'NFKD'"),
            ("{step: stop_words, language: ja}", "data.cleaning.0.language: 'ja' is written without spaces"),
            ("{step: language, keep: [en, 7]}", "data.cleaning.0.keep.1 = 7: should be a valid string; put it in"),
            ("{step: length}", "data.cleaning.0: no length is given"),
        ],
    )
    def test_problems(self, recipe: Path, written: str, problem: str) -> None:
        (line,) = problems(recipe, f"data.cleaning=[{written}]")
        assert line.strip().startswith(problem)

    def test_the_table_lists_each_kind_and_its_fields(self) -> None:
        rows = [row for row in markdown(RunConfig).splitlines() if row.startswith("| `data.cleaning.N.")]
        assert sum(row.startswith("| `data.cleaning.N.step`") for row in rows) == 1
        assert rows[0].startswith("| `data.cleaning.N.step` | unicode \\| lowercase")
        assert "| unicode: Normalizes" in rows[0] and " segment: Puts spaces" in rows[0]
        assert any(row.startswith("| `data.cleaning.N.threshold` | number | 0.8 | near_dedup: Jaccard") for row in rows)
        assert any(row.startswith("| `data.cleaning.N.keep` | list of text | required | language: ") for row in rows)

    def test_they_decide_the_result_and_are_none_by_default(self, recipe: Path) -> None:
        assert result_fields(load_recipe(recipe))["data.cleaning"] == []
        config = load_recipe(recipe, ["data.cleaning=[{step: unicode}, {step: dedup}]", "data.cleaning.0.form=NFKC"])
        assert result_fields(config)["data.cleaning.0.form"] == "NFKC"


class TestSchema:
    def test_every_field_says_what_it_is(self) -> None:
        silent = [f.name for f in fields_of(RunConfig) if not f.description.endswith((".", "?"))]
        assert silent == []

    def test_the_table_names_types_and_defaults(self) -> None:
        table = markdown(RunConfig).splitlines()
        (lr,) = [row for row in table if row.startswith("| `train.lr` |")]
        assert lr.startswith("| `train.lr` | number | required |")
        (path,) = [row for row in table if row.startswith("| `data.sources.N.path` |")]
        assert "text | required" in path
        assert any(row.startswith("| `train.grad_clip` | number \\| null | 1.0 |") for row in table)

    def test_json_schema_describes_the_sections(self) -> None:
        schema = RunConfig.model_json_schema()
        assert schema["required"] == ["run", "storage", "data", "train"]
        assert schema["additionalProperties"] is False
        assert "lr" in schema["$defs"]["TrainConfig"]["properties"]

    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("trian", "train"),
            ("train.learning_rate", None),
            ("train.step", "train.steps"),
            ("lr", "train.lr"),
            ("vocab_size", "data.tokenizer.vocab_size"),
            ("model.lr", "train.lr"),
            ("data.sources.3.wieght", "data.sources.3.weight"),
            ("warmup_stepz", "train.schedule.warmup_steps"),
            ("qqqqqq", None),
        ],
    )
    def test_nearest_name(self, given: str, meant: str | None) -> None:
        assert nearest_name(RunConfig, given) == meant


class TestSenselessValues:
    @pytest.mark.parametrize(
        ("override", "problem"),
        [
            ("seed=18446744073709551616", r"seed = 18446744073709551616: should be at most 9,223,372,036,854,775,807"),
            ("seed=no", r'seed = "no": should be a valid integer'),
            ("seed=true", r"seed = true: should be a number, not true or false"),
            ("train.lr=on", r'train\.lr = "on": should be a valid number'),
            ("train.lr=true", r"train\.lr = true: should be a number"),
            ("data.sources.0.weight=.inf", r"data\.sources\.0\.weight = Infinity: should be a finite number"),
            ("data.sources.0.weight=true", r"data\.sources\.0\.weight = true: should be a number"),
            ("train.label_smoothing=.nan", r"train\.label_smoothing = NaN: should be"),
            ("checkpoint.every_s=1:30", r'checkpoint\.every_s = "1:30": should be a valid number'),
            ("storage=s3:b", r"storage: begins with s3: and is no URL; write s3://"),
            ("storage=gs://bucket/runs", r"storage: gs:// may hold shards, not run state, .* Write s3://bucket/prefix"),
            ("train.init_from=gs://bucket/model", r"train.init_from: gs:// may hold shards"),
            ("data.tokenizer.path=gs://bucket/t.json", r"data.tokenizer.path: gs:// may hold shards"),
            ("storage=hdfs://bucket/runs", r"storage: hdfs:// is no storage; write s3://bucket/prefix or a path"),
            ("storage=s3://", r"storage: names no bucket; write s3://bucket/prefix"),
            ("storage=$HOME/runs", r"storage: variables such as \$HOME are not expanded"),
            ('storage="a\\0b"', r"storage: has a NUL character"),
            (f"train.{'a.' * 3000}b=1", r"--set train.a.a.*: must be NAME=VALUE"),
            ("\udcff=1", r"\S+"),
            ("data.sources.0.path=${DATA}/x", r"data\.sources\.0\.path: variables such as \$\{DATA are not expanded"),
        ],
    )
    def test_is_refused_by_name(self, recipe: Path, override: str, problem: str) -> None:
        (line,) = problems(recipe, override)
        assert re.match(r"\s*" + problem, line), line

    def test_thousands_of_unknown_fields_are_told_of_and_not_all_described(self, recipe: Path) -> None:
        with recipe.open("a") as file:
            file.writelines(f"trian_{number}: 1\n" for number in range(8000))
        found = problems_shown(recipe)
        assert len(found) == 101 and found[-1] == "and 7,900 more"

    def test_a_device_without_an_end_is_no_recipe(self) -> None:
        with pytest.raises(RecipeError, match="/dev/zero"):
            load_recipe(Path("/dev/zero"))

    def test_a_name_that_no_file_can_have_is_no_run(self) -> None:
        for name in ("x" * 5000, "a/" * 3000, "a\0b"):
            with pytest.raises((UnknownRunError, RecipeError)):
                find_recipe(name)
            with pytest.raises(UnknownRunError):
                find_sweep(name)

    @pytest.mark.parametrize(("text", "value"), [("010", 10), ("0o17", 15), ("1e3", 1000), ("1000", 1000)])
    def test_numbers_are_those_of_yaml_1_2(self, recipe: Path, text: str, value: int) -> None:
        assert load_recipe(recipe, [f"train.steps={text}"]).train.steps == value
