"""Builds the quickstart corpora from Python's standard library, which every machine has."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.readers import zstd
from data.stores.store import Store

SHARDS = 24
"""Number of shards of a corpus: enough to shuffle and read in parallel, few enough for a short listing."""

EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "pydoc_data",
    "encodings",
}
"""Folders of tests and generated tables: large, unlike the other modules, and not installed everywhere."""

MAX_SUMMARY_CHARS = 200
"""A longer first paragraph of a docstring is not used as a summary."""


def write_shards(store: Store, documents: Iterable[tuple[str, dict[str, Any]]]) -> tuple[int, int]:
    """Writes documents as SHARDS shards of jsonl.zst; a document's key decides its shard.

    Returns:
        Number of documents, and bytes before compression.
    """
    shards: list[list[bytes]] = [[] for _ in range(SHARDS)]
    for key, document in documents:
        shard = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % SHARDS
        shards[shard].append(json.dumps(document, ensure_ascii=False).encode())
    for number, lines in enumerate(shards):
        store.put(f"part-{number:03d}.jsonl.zst", zstd.compress(b"\n".join(lines) + b"\n"))
    return sum(map(len, shards)), sum(len(line) for lines in shards for line in lines)


def modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every module of the library as a document with its path and text."""
    for name, text in standard_library():
        yield name, {"path": name, "text": text}


def documented_functions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every function of the library that has a docstring and a body, with the docstring's summary.

    The source comes from `ast.unparse` without the docstring, so that it has one format and no comments that give the
    summary away. Duplicate functions are yielded once.
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
    """The first paragraph of a docstring as one line; "" where there is none, or where it is too long."""
    summary = " ".join(docstring.strip().split("\n\n")[0].split())
    return summary if len(summary) <= MAX_SUMMARY_CHARS else ""


def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the library's strings
        try:
            return ast.parse(text)
        except SyntaxError:  # the library has invalid files for its tests
            return ast.Module([], [])


def standard_library() -> Iterator[tuple[str, str]]:
    """Yields the path and text of every module of the standard library, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if EXCLUDED_FOLDERS.isdisjoint(name.parts):
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield name.as_posix(), text
