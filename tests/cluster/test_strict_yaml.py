"""Strict YAML: what plain scalars mean, what is refused and where, and that no file takes much time or memory."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster import strict_yaml
from cluster.strict_yaml import MOST_DEPTH, StrictYamlError, dump, dump_line, load, override

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0x_", "0x_"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-13-77", "2024-13-77"),
        ("3e-4", 3e-4),
        ("1.5e9", 1.5e9),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
        ("'3'", "3"),
        ('"no"', "no"),
        ("!!str 3", "3"),
        ("! 3", "3"),
        ("$HOME/x", "$HOME/x"),
        ("a: [1, b, {c: null}]", {"a": [1, "b", {"c": None}]}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("x: &e {n: 1}\ny: *e", {"x": {"n": 1}, "y": {"n": 1}}),
        ("x: &e {n: 1, m: 2}\ny: {<<: *e, n: 3}", {"x": {"n": 1, "m": 2}, "y": {"n": 3, "m": 2}}),
        ("[&e {n: 1}, &f {n: 5, k: 6}, {<<: [*e, *f]}]", [{"n": 1}, {"n": 5, "k": 6}, {"n": 1, "k": 6}]),
        (r'"\ud83d\ude00"', "😀"),
        ('"<<": 1', {"<<": 1}),
    ],
)
def test_what_it_means(text: str, value: Any) -> None:
    found = load(text)
    assert found == value and type(found) is type(value)


@given(VALUES)
def test_json_is_read_as_json(value: Any) -> None:
    assert load(json.dumps(value)) == value
    assert load(json.dumps(value, indent=1)) == value


@given(VALUES)
def test_what_is_written_is_what_is_read(value: Any) -> None:
    assert load(dump(value)) == value == load(dump_line(value))
    assert "\n" not in dump_line(value)


@pytest.mark.parametrize(
    "text", ["1e3", "no", "010", "1:30", "~", "", "# x", "a: b", "2024-01-01", "- x", " x ", "0o7"]
)
def test_a_text_is_read_back_as_text_by_readers_of_either_version(text: str) -> None:
    assert load(dump({"x": text})) == yaml.safe_load(dump({"x": text})) == {"x": text}


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("a: 1\na: 2", "a is given twice", 1),
        ("a: 1\n3: 2", "a name is expected here, not '3'", 1),
        ("true: 2", "not 'true'", 0),
        ("? [x]\n: 1", "not a list or a mapping", 0),
        ("a: !!int three", "the tag !!int has no meaning", 0),
        ("a: !!python/object:os.system x", "has no meaning", 0),
        ("a: !!binary AAAA", "has no meaning", 0),
        ("a: !!set {x}", "has no meaning", 0),
        ("a: &a [1, *a]", "stands for nothing that ends before it", 0),
        ("a: *b", "stands for nothing", 0),
        ("a: 1\n--- \nb: 2", "a second document", 1),
        ("<<: 3", "<< takes a mapping", 0),
        ("a: " + "7" * 5000, "a number of 5,000 characters", 0),
        (r'a: "\ud83d"', "half of a surrogate pair", 0),
        ("a: {b: 1", "", 0),
        ("a:\n\tb: 1", "", 1),
    ],
)
def test_what_is_refused_and_where(text: str, problem: str, line: int) -> None:
    with pytest.raises(StrictYamlError) as raised:
        load(text)
    assert problem in raised.value.problem and raised.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "- " * 5_000 + "x",
        "{a: " * 5_000,
        "\n".join(f"{' ' * depth}a:" for depth in range(500)),
    ],
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(StrictYamlError, match=f"more than {MOST_DEPTH} levels"):
        load(text)


def test_an_alias_bomb_takes_no_memory() -> None:
    lines = ['a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(StrictYamlError, match="where aliases are written out"):
        load("\n".join(lines))


def test_two_uses_of_an_anchor_are_two_values() -> None:
    found = load("x: &e {n: 1}\ny: *e")
    found["x"]["n"] = 2
    assert found["y"] == {"n": 1}


def test_a_large_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MOST_CHARS", 10)
    with pytest.raises(StrictYamlError, match="at most 10"):
        load("a: 1, b: 2, c: 3")


@given(st.text(max_size=60) | st.text(alphabet=list("[]{}:,-#&*!|>'\"%@`\n\t ab01.~<?"), max_size=60))
def test_any_text_gives_a_value_or_one_message(text: str) -> None:
    try:
        load(text)
    except StrictYamlError as error:
        assert error.problem and "\n" not in error.problem


@given(VALUES)
def test_an_override_is_read_as_its_value(value: Any) -> None:
    name, _, text = override("data.sources.0.path", value).partition("=")
    assert name == "data.sources.0.path" and load(text) == value


@pytest.mark.parametrize("text", ["s3://bucket/a b", "/x #2", "/a: b", "~", "1e3", "=", "", "[a]", "it's", '"', "a\nb"])
def test_hostile_paths_survive_the_road_of_a_shell(text: str) -> None:
    [_, given] = shlex.split(shlex.join(["--set", override("storage", text)]))
    assert load(given.partition("=")[2]) == text


def test_plain_texts_are_written_plainly() -> None:
    assert override("storage", "s3://bucket/runs") == "storage=s3://bucket/runs"
    assert override("storage", "/data/x #2") == 'storage="/data/x #2"'
