"""Writes YAML for readers: block style, keys in the given order, and comments above fields."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from cluster.strict_yaml import Dumper, represent_text

_WIDTH = 100


class _Dumper(Dumper):
    """Indents lists below their key, and writes text of several lines as a block."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


# Line breaks of YAML and of str.splitlines other than \n.
_OTHER_BREAKS = frozenset("\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if _OTHER_BREAKS.isdisjoint(text) and "\n" not in text:
        return represent_text(dumper, text)
    style = "|" if _OTHER_BREAKS.isdisjoint(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(document: Any, comments: Mapping[str, str] | None = None) -> str:
    """The document as YAML.

    Args:
        document: dictionaries, lists and scalars.
        comments: text by the dotted end of a field's path, such as `headGroupSpec.rayStartParams`, where lists do not
            count. Each is written once, above the first field that matches.
    """
    plain = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    lines = plain.splitlines(keepends=True)
    # The lines of fields are found by parsing the written YAML; comments are inserted between lines and change none.
    lines_of_fields = list(_fields(yaml.compose(plain, Loader=yaml.SafeLoader)))
    above: dict[int, str] = {}
    for end, comment in (comments or {}).items():
        line = next((line for path, line in lines_of_fields if f".{path}".endswith(f".{end}")), None)
        if line is not None:
            above.setdefault(line, comment)
    return "".join(
        _comment(above[number], line) + line if number in above else line for number, line in enumerate(lines)
    )


def dump_all(documents: Sequence[Any], comments: Mapping[str, str] | None = None) -> str:
    """Several documents as YAML; a comment is written in every document that has its field."""
    return "---\n".join(dump(document, comments) for document in documents)


def _fields(node: yaml.Node | None, path: str = "") -> Iterator[tuple[str, int]]:
    """Dotted path and line, from 0, of every field below `node`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            yield here, key.start_mark.line
            yield from _fields(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _fields(item, path)


def _comment(text: str, line: str) -> str:
    indent = line[: len(line) - len(line.lstrip(" "))]
    # Above an item of a list, a comment is aligned with the dash.
    return "".join(f"{indent}# {part}\n" for part in textwrap.wrap(text, _WIDTH))
