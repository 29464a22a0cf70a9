"""Corpora made of the running interpreter's standard library: text that every machine has."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from data.stores.store import Store

SHARDS = 24
"""Shards of a corpus: enough to be shuffled and read side by side, few enough to be listed at a glance."""

# Tests and generated tables are much of the library, little like the rest, and not installed everywhere.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings"}

LONGEST_SUMMARY = 200
"""Characters; what is longer is a text of its own rather than a summary."""


def write_shards(store: Store, documents: Iterable[tuple[str, dict[str, Any]]]) -> tuple[int, int]:
    """Write documents as SHARDS shards of jsonl.zst, each into the one that its key decides.

    Returns:
        documents and bytes written.
    """
    shards: list[list[bytes]] = [[] for _ in range(SHARDS)]
    for key, document in documents:
        shard = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % SHARDS
        shards[shard].append(json.dumps(document, ensure_ascii=False).encode())
    compressor = zstandard.ZstdCompressor()
    for number, lines in enumerate(shards):
        store.put(f"part-{number:03d}.jsonl.zst", compressor.compress(b"\n".join(lines) + b"\n"))
    return sum(map(len, shards)), sum(len(line) for lines in shards for line in lines)


def modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every module of the library as a document: its name and text."""
    for name, text in standard_library():
        yield name, {"path": name, "text": text}


def documented_functions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every function of the library that has a docstring and does something, with the docstring's summary.

    Its source is what `ast.unparse` makes of it without the docstring: one spelling, and no comments that tell.
    Functions that are the same in several places come once.
    """
    seen = set()
    for module, text in standard_library():
        for node in ast.walk(_parsed(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            summary = summary_of(ast.get_docstring(node) or "")
            if not summary or len(node.body) < 2:
                continue
            node.body = node.body[1:]
            source = ast.unparse(node)
            if source not in seen:
                seen.add(source)
                yield f"{module}/{node.name}", {"module": module, "source": source, "summary": summary}


def summary_of(docstring: str) -> str:
    """The first paragraph of a docstring as one line; "" where there is none, or it is no summary."""
    summary = " ".join(docstring.strip().split("\n\n")[0].split())
    return summary if len(summary) <= LONGEST_SUMMARY else ""


def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in the library's own strings
        try:
            return ast.parse(text)
        except SyntaxError:  # the library has files that are wrong on purpose
            return ast.Module([], [])


def standard_library() -> Iterator[tuple[str, str]]:
    """Name and text of every module of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield name.as_posix(), text
