"""The words of the project: docs/glossary.md names what exists, and the words it replaced name nothing any more."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.spec import ClusterSpec
from orchestrator.config.recipe import RunConfig
from orchestrator.config.renamed import RENAMED
from orchestrator.config.schema import fields_of
from orchestrator.sweep.spec import SweepSpec

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "cluster", "data", "model")
GLOSSARY = (ROOT / "docs/glossary.md").read_text()

REPLACED = (
    # Whole names.
    *("Wish", "Wishes", "Orders", "Knock", "Gangs", "NodeWait", "NodeKeeper", "keeper_of", "LossWatch", "Desk", "Room"),
    *("Situation", "Survivor", "Recorder", "StepLog", "StepReader", "Member", "live_story", "sign_of_life"),
    *("in_our_words", "one_line", "let_go", "set_aside", "left_out", "leave_out", "bad_steps", "kept_free"),
    *("standing_by", "on_the_way", "translate_on_the_way", "AGAIN_S", "WORTH_S", "UNTRUSTED_S", "LOOK_EVERY_S"),
    # Words, also as a part of a name.
    *("keeper", "astray", "stint", "stints", "desk", "heir", "newcomers", "beside", "fewest", "heard"),
)
"""Names and words of earlier versions that the field's own terms have replaced."""

SECTION_WORDS = {"store": "Storage", "sample": "Sample", "observe": "Observe", "eval": "Evaluation"} | {
    "data": "Document",
    "train": "Training loop",
    "checkpoint": "Checkpoint",
    "scaling": "Scaling",
    "model": "Model",
}
"""The entry of the glossary that explains each section of a recipe."""


def entries() -> dict[str, str]:
    """Text of every entry, by its word."""
    paragraphs = [" ".join(each.split()) for each in GLOSSARY.split("\n\n") if each.startswith("**")]
    return {text.split(".**")[0].removeprefix("**"): text.split(".**", 1)[1] for text in paragraphs}


def names_in(text: str) -> list[str]:
    """What the text names in backquotes."""
    return re.findall(r"`([^`]+)`", text)


def public_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every public class, function, method, parameter, attribute and variable of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found = name
            case ast.arg(arg=name):
                found = name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found = name
            case _:
                continue
        if not found.startswith("_"):
            yield node.lineno, found


def is_replaced(name: str) -> bool:
    """Whether the name is, or has as a part, one that was replaced."""
    return name in REPLACED or bool(set(name.lower().split("_")).intersection(REPLACED))


def all_classes() -> set[str]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text())))
    return {node.name for node in nodes if isinstance(node, ast.ClassDef)}


def test_entries_are_in_alphabetical_order_and_short() -> None:
    words = list(entries())
    assert words == sorted(words, key=str.lower)
    for word, text in entries().items():
        assert 20 < len(text) < 400, word


def test_every_field_and_class_that_is_named_exists() -> None:
    fields = {field.name for model in (RunConfig, SweepSpec) for field in fields_of(model)}
    sections = {name.rpartition(".")[0] for name in fields} | {name.split(".")[0] for name in fields}
    lists = {name.split(".N.")[0] for name in fields}
    known = fields | sections | lists | all_classes() | set(RENAMED)
    unknown = []
    for word, text in entries().items():
        for name in names_in(text):
            parts = name.split(" / ")  # a quotient of two fields
            is_other = name.startswith(("manta ", "--", "orchestrator/")) or name.endswith(".json") or name == "pbt"
            if not is_other and not set(parts) <= known:
                unknown.append((word, name))
    assert unknown == []


@pytest.mark.parametrize("name", [name for name in RunConfig.model_fields])
def test_every_top_level_field_of_a_recipe_is_explained(name: str) -> None:
    named = [each for text in entries().values() for each in names_in(text)]
    assert name in named or any(each.startswith(name + ".") for each in named)
    if name in SECTION_WORDS:
        text = entries()[SECTION_WORDS[name]]
        assert any(each == name or each.startswith(name + ".") for each in names_in(text))


def test_every_section_has_a_word_here() -> None:
    sections = {name for name, info in RunConfig.model_fields.items() if isinstance(info.annotation, type)}
    sections = {name for name in sections if issubclass(RunConfig.model_fields[name].annotation, BaseModel)}  # type: ignore[arg-type]
    assert sections == set(SECTION_WORDS)


def test_no_replaced_word_is_a_public_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in public_names(path)
        if is_replaced(name)
    ]
    assert found == []


@pytest.mark.parametrize("model", [RunConfig, ClusterSpec, SweepSpec])
def test_no_replaced_word_is_a_field(model: type[BaseModel]) -> None:
    parts = {part for field in fields_of(model) for part in field.name.split(".")}
    assert [part for part in sorted(parts) if is_replaced(part)] == []
    assert not {field.name for field in fields_of(model)} & set(RENAMED)


@pytest.mark.parametrize("name", ["LossWatch", "keeper_of", "node_keeper", "FEWEST", "stints", "beside", "heard_at"])
def test_a_replaced_word_is_recognized(name: str) -> None:
    assert is_replaced(name)
