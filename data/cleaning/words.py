r"""Splits text into words, for the steps that need words.

A word is a run of letters, marks, digits and connectors (\w of UTS #18), with apostrophes inside it. Chinese has no
spaces between words: runs with Han characters are cut by jieba's dictionary, unless an earlier step has separated the
words. Runs with kana are not cut, because the dictionary has no Japanese.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from data.cleaning.libraries import library

MapWord = Callable[[str], str]
"""Takes a word and returns its replacement; "" removes the word."""


@cache
def _pattern(pattern: str) -> Any:
    # \w of `re` does not include combining marks, so it would cut Hindi at every vowel sign.
    import regex

    return regex.compile(pattern)


_WORD = r"\w+(?:['\u2019]\w+)*"

_HAN, _KANA = r"\p{Han}", r"[\p{Hiragana}\p{Katakana}]"


def is_chinese(run: str) -> bool:
    """Whether a run without spaces must be cut into Chinese words."""
    return _has_han(run) and _pattern(_KANA).search(run) is None


def _has_han(text: str) -> bool:
    return not text.isascii() and _pattern(_HAN).search(text) is not None


def cut_chinese(run: str) -> list[str]:
    """The words of a run without spaces; their concatenation is the run."""
    pieces: list[str] = library("rjieba", "cutting Chinese into words").cut(run)
    return pieces


def _cut(run: str) -> list[str]:
    return cut_chinese(run) if is_chinese(run) else [run]


def count_words(text: str, *, segmented: bool) -> int:
    """The number of words in a text. `segmented`: Chinese words are separated by spaces already."""
    runs: list[str] = _pattern(_WORD).findall(text)
    return len(runs) if segmented or not _has_han(text) else sum(len(_cut(run)) for run in runs)


def replace_words(text: str, replacement: MapWord, *, segmented: bool) -> str:
    """`text` with each word replaced; where the replacement is empty, the spaces after the word are removed too."""
    cut = None if segmented or not _has_han(text) else _cut

    def replaced(match: Any) -> str:
        run, spaces = match.groups()
        word = replacement(run) if cut is None else "".join(map(replacement, cut(run)))
        return word + spaces if word else ""

    result: str = _pattern(rf"({_WORD})([^\S\n]*)").sub(replaced, text)
    return result


def segment(text: str) -> str:
    """`text` with a space between neighbouring words of each Chinese run."""
    if not _has_han(text):
        return text
    result: str = _pattern(_WORD).sub(lambda match: " ".join(_cut(match[0])), text)
    return result
