"""Strict YAML, for all files that people write and for `--set`; and how values are written so that they are read back.

PyYAML parses; plain scalars then have the meaning of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not of
1.1, in which `no` is a boolean, `010` is 8, `1:30` is 90 and `2024-01-01` is a date. Names of a mapping are texts, each
given once. Aliases and merges (`<<`) work within a bound, so that a small file cannot take much memory.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

MOST_CHARS, MOST_DEPTH, MOST_VALUES = 1_000_000, 50, 20_000
"""Most characters of a document, levels of nesting, and values where aliases are written out: read within seconds."""

MOST_DIGITS = 400
"""Most characters of a number; Python takes time quadratic in them."""

_NULL = {"", "~", "null", "Null", "NULL"}

_BOOLEANS = dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_SURROGATE = re.compile(r"[\ud800-\udfff]")

_UNWRITABLE = re.compile(r"[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that are line breaks in YAML, or no part of it."""

_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")


class StrictYamlError(Exception):
    """Text is not YAML, or more than is read here.

    Attributes:
        problem: what is wrong.
        line, column: where, from 0; None where that is not known.
    """

    def __init__(self, problem: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column = problem, line, column


def load(text: str) -> Any:
    """The document in a text: None, a boolean, a number, a text, or lists and dictionaries of these.

    Raises:
        StrictYamlError: the text is no YAML, has more than one document, or breaks a rule of this module.
    """
    if len(text) > MOST_CHARS:
        raise StrictYamlError(f"has {len(text):,} characters; at most {MOST_CHARS:,} are read")
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = (None, None) if mark is None else (mark.line, mark.column)
        raise StrictYamlError(error.problem or "not YAML", *where) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character or an escape that is none of Unicode
        raise StrictYamlError(str(error).partition("\n")[0]) from None


class Dumper(yaml.SafeDumper):
    """Writes values so that `load` reads them back, and readers of YAML 1.1 do; without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value is written out where it occurs again: always."""
        return True


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text, in quotes where it would be read as something else."""
    # PyYAML quotes what YAML 1.1 does not read as text; 1e3 is a number in 1.2 alone.
    style = '"' if _UNWRITABLE.search(text) else None if plain_value(text) is text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, represent_text)


def dump(value: Any) -> str:
    """A value as YAML, its names in their order."""
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def dump_line(value: Any) -> str:
    """A value in one line, as `--set` takes it behind the equals sign."""
    return _UNWRITABLE.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(value, ensure_ascii=False))


def override(name: str, value: Any) -> str:
    """`NAME=VALUE` as `--set` takes it; the only way to write one. A text is in quotes only where it has to be."""
    if isinstance(value, str):
        try:
            is_plain = load(value) == value and "\n" not in value
        except StrictYamlError:
            is_plain = False
        if is_plain:
            return f"{name}={value}"
    return f"{name}={dump_line(value)}"


class _Reader:
    """Makes values of the events of a parser."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, tuple[Any, int]] = {}  # a value, and how many values it consists of
        self._count = 0

    def document(self) -> Any:
        """The value of the only document; None where there is none."""
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise _error(event, "a second document begins here; there can be one")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        self._add(event, 1)
        if depth > MOST_DEPTH:
            raise _error(event, f"more than {MOST_DEPTH} levels of nesting")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _error(event, f"*{event.anchor} stands for nothing that ends before it")
            value, count = self._anchors[event.anchor]
            self._add(event, count)
            return copy.deepcopy(value)  # an override changes one of them
        began = self._count
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif event.tag is not None:
            raise _unknown_tag(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._value(each, depth + 1) for each in self._until(yaml.SequenceEndEvent)]
        else:
            value = self._mapping(depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._count - began + 1
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key in self._until(yaml.MappingEndEvent):
            name = self._value(key, depth)
            value = self._value(next(self._events), depth)
            if name == "<<" and key.implicit[0]:
                merged = _merged(key, value) | merged
            elif not isinstance(name, str):
                given = repr(key.value) if isinstance(key, yaml.ScalarEvent) else "a list or a mapping"
                raise _error(key, f"a name is expected here, not {given}; quote it if it is one")
            elif name in own:
                raise _error(key, f"{name} is given twice in this section; keep one")
            else:
                own[name] = value
        return merged | own

    def _until(self, end: type[Any]) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _add(self, event: Any, count: int) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            raise _error(event, f"more than {MOST_VALUES:,} values, where aliases are written out")


def _merged(key: Any, value: Any) -> dict[str, Any]:
    """What `<<` merges into a mapping: of several mappings, the first that has a name gives its value."""
    given = value if isinstance(value, list) else [value]
    merged: dict[str, Any] = {}
    for each in given:
        if not isinstance(each, dict):
            raise _error(key, "<< takes a mapping, or a list of them")
        merged = each | merged
    return merged


def _scalar(event: Any) -> Any:
    if event.tag is not None and event.tag not in _TEXT_TAGS:
        raise _unknown_tag(event)
    text = _text(event)
    if event.tag is not None or not event.implicit[0]:  # in quotes, or a block of lines
        return text
    try:
        return plain_value(text)
    except ValueError as error:
        raise _error(event, str(error)) from None


def _text(event: Any) -> str:
    """The text of a scalar; JSON writes a character beyond 16 bits as two escapes."""
    text: str = event.value
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise _error(event, "half of a surrogate pair, which is no character") from None


def plain_value(text: str) -> Any:
    """The value of a scalar without quotes, by the core schema of YAML 1.2; the same object where it is text.

    Raises:
        ValueError: it is a number of more than MOST_DIGITS characters.
    """
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if match := _NOT_FINITE.fullmatch(text):
        return float("nan") if match[3] else float(f"{match[1]}inf")
    is_integer = _INTEGER.fullmatch(text) is not None
    if not is_integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} characters; quote it if it is a text")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if is_integer else float(text)


def _unknown_tag(event: Any) -> StrictYamlError:
    tag = event.tag.replace("tag:yaml.org,2002:", "!!")
    return _error(event, f"the tag {tag} has no meaning here; leave it out")


def _error(event: Any, problem: str) -> StrictYamlError:
    return StrictYamlError(problem, event.start_mark.line, event.start_mark.column)
