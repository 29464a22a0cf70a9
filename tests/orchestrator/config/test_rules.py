"""Rules between fields: each declares the fields it reads, and the valid part of a wrong recipe is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator.config import rules
from orchestrator.config.load import config_from
from orchestrator.config.recipe import RunConfig
from orchestrator.config.rules import RULES, Rule, contradictions
from orchestrator.config.schema import section_of
from orchestrator.errors import RecipeError
from tests.recipes import tiny_recipe

PAIRS = [{"path": "text", "input_column": "en"}]

VALID: list[dict[str, Any]] = [
    {},
    {"scaling.min_workers": 1, "scaling.max_workers": 2},
    {"train.schedule.warmup_steps": 1, "train.schedule.name": "wsd", "train.schedule.decay_steps": 1},
    {"data.tokenizer": {"kind": "bpe", "vocab_size": 300}, "model.vocab_size": 512},
    {"data.tokenizer.path": "tokenizer.json", "model.vocab_size": 512},
    {"data.sources": PAIRS, "model.architecture": "encoder_decoder"},
    {"data.sources": PAIRS, "model.architecture": "encoder_decoder"}
    | {"data.input_tokenizer": {"kind": "bytes"}, "model.input_vocab_size": 300},
    {"eval.every_steps": 2, "data.validation_fraction": 0.1},
    *({"scaling.gpus_per_worker": gpus, "scaling.num_workers": 1} for gpus in (0.5, 0.3333, 0.33, 0.25, 0.1, 1.0)),
]
"""Overrides of valid recipes, which together take every branch that reads a field."""

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"train.global_batch_size": 5}, r"^train\.global_batch_size = 5: not a multiple .* Nearest that are: 4, 6\."),
    ({"scaling.num_workers": 1, "scaling.min_workers": 2}, r"^scaling\.min_workers = 2: more than .*num_workers = 1"),
    ({"scaling.num_workers": 3}, r"^scaling\.num_workers = 3: more than the 2 micro-batches .* At most 2,"),
    ({"scaling.gpus_per_worker": 0.4}, r"^scaling\.gpus_per_worker = 0\.4: .* Nearest: 0\.5\."),
    ({"scaling.gpus_per_worker": 0.1667}, r"^scaling\.gpus_per_worker = 0\.1667: .* Nearest: 0\.1666\."),
    ({"scaling.gpus_per_worker": 0.7}, r"^scaling\.gpus_per_worker = 0\.7: .* Nearest: 1\."),
    ({"scaling.gpus_per_worker": 0.5, "scaling.num_workers": 2}, r"^scaling\.gpus_per_worker = 0\.5: with 2 workers"),
    ({"train.schedule.warmup_steps": 4}, r"^train\.schedule\.warmup_steps = 4: not shorter .* At most 3\."),
    ({"model.vocab_size": 256}, r"^model\.vocab_size = 256: fewer rows .*kind = bytes gives 257\."),
    (
        {"model.input_vocab_size": 300, "data.sources": PAIRS, "model.architecture": "encoder_decoder"},
        r"^model\.input_vocab_size = 300: inputs and texts share",
    ),
    ({"model.architecture": "encoder_decoder"}, r"^model\.architecture = encoder_decoder: its encoder has nothing"),
    ({"data.sources": PAIRS}, r"^model\.architecture = decoder: the inputs .* would not be read"),
    ({"eval.every_steps": 2}, r"^eval\.every_steps = 2: no text is held out .*validation_fraction = 0\."),
]


class Recorder:
    """Stands in for a section of a recipe and records the dotted name of every value that is read."""

    def __init__(self, section: Any, reads: set[str], prefix: str = "") -> None:
        self._section, self._reads, self._prefix = section, reads, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        if name in type(self._section).model_fields and section_of(type(self._section).model_fields[name].annotation):
            return Recorder(value, self._reads, f"{self._prefix}{name}.")
        self._reads.add(self._prefix + name)
        return value


def configs() -> Iterator[RunConfig]:
    """The configs of VALID, and those of BROKEN as they would be without the rules."""
    for overrides in VALID:
        yield config_from(tiny_recipe(**overrides), "a test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RULES", [])
        for overrides, _ in BROKEN:
            yield config_from(tiny_recipe(**overrides), "a test")


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        config_from(document, "a test")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.problem.__name__)
def test_a_rule_declares_exactly_the_fields_it_reads(rule: Rule) -> None:
    reads: set[str] = set()
    for config in configs():
        rule.problem(Recorder(config, reads))  # type: ignore[arg-type]
    assert reads == set(rule.reads)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.problem.__name__)
def test_every_declared_field_exists(rule: Rule) -> None:
    """A mistyped name would switch the rule off without a word, since a rule is skipped where a field is missing."""
    assert rule.reads
    for name in rule.reads:
        model: type[BaseModel] | None = RunConfig
        for part in name.split("."):
            assert model is not None and part in model.model_fields, f"{name} is not a field of a recipe"
            model = section_of(model.model_fields[part].annotation)
        assert model is None, f"{name} is a section; a rule declares the fields in it"


@pytest.mark.parametrize(("overrides", "problem"), BROKEN, ids=[problem.split(":")[0] for _, problem in BROKEN])
def test_a_broken_rule_is_one_problem_with_its_remedy(overrides: dict[str, Any], problem: str) -> None:
    (line,) = problems(tiny_recipe(**overrides))
    assert re.search(problem, line)


def test_every_rule_is_broken_by_a_case_here() -> None:
    silent = set(RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RULES", [])
        broken = [config_from(tiny_recipe(**overrides), "a test") for overrides, _ in BROKEN]
    for config in broken:
        silent -= {rule for rule in RULES if rule.problem(config)}
    assert silent == set()


def test_the_valid_part_of_a_wrong_recipe_is_checked() -> None:
    wrong = tiny_recipe(**{"train.lr": "fast", "scaling.num_workers": 0, "train.global_batch_size": 5, "run": "a/b"})
    found = problems(wrong)
    assert any(line.startswith("train.global_batch_size = 5: not a multiple") for line in found)
    assert [line.split(" ")[0] for line in found] == [
        "run",
        "train.lr",
        "scaling.num_workers",
        "train.global_batch_size",
    ]


@pytest.mark.parametrize("value", ["four", None, 0])
def test_a_rule_is_skipped_where_a_field_it_reads_is_invalid(value: Any) -> None:
    found = problems(tiny_recipe(**{"train.micro_batch_size": value, "train.global_batch_size": 5}))
    assert len(found) == 1 and found[0].startswith("train.micro_batch_size")


def test_a_rule_is_skipped_where_a_field_it_reads_is_missing() -> None:
    document = tiny_recipe(**{"scaling.num_workers": 9})
    del document["train"]["micro_batch_size"]
    assert [line.split(":")[0] for line in problems(document)] == ["train.micro_batch_size"]


def test_an_attribute_error_inside_a_rule_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_a_field_that_is_not_there(config: Any) -> str | None:
        return str(config.train.stepz)

    monkeypatch.setattr(rules, "RULES", [Rule(("train.steps",), reads_a_field_that_is_not_there)])
    config: Any = SimpleNamespace(train=SimpleNamespace(steps=4))
    with pytest.raises(AttributeError, match="stepz"):
        list(contradictions(config))
    with pytest.raises(AttributeError, match="stepz"):
        config_from(tiny_recipe(), "a test")
