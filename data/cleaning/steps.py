"""The steps that look at one document: each a function from a text to a text, or to None, which removes it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from data.cleaning.config import (
    FunctionStep,
    LanguageStep,
    LemmatizeStep,
    LengthStep,
    LowercaseStep,
    SegmentStep,
    Step,
    StopWordsStep,
    UnicodeStep,
    name_of,
)
from data.cleaning.libraries import library
from data.cleaning.user_function import checked_function
from data.cleaning.words import count_words, cut_chinese, replace_words, segment

Clean = Callable[[str], str | None]
"""One step: a document's text in, its new text out, or None to remove it. Pure."""

IDENTIFIED_CHARS = 4096
"""Characters of a document's beginning from which its language is told: more cost time and change next to nothing."""

LEMMAS_KEPT = 1 << 16
"""Words whose lemmas a process remembers: most words of a text are among the last so many different ones."""


def made(step: Step, *, segmented: bool) -> Clean:
    """The function that a step is, with its library imported.

    Args:
        step: not one of those that need the whole data set.
        segmented: whether a step before it has set Chinese words apart by spaces.

    Raises:
        InputError: a library is not installed, or a function of the user's cannot be had; with the remedy.
    """
    match step:
        case UnicodeStep():
            return lambda text: unicodedata.normalize(step.form, text)
        case LowercaseStep():
            return str.lower
        case LengthStep():
            return _length(step, segmented)
        case LanguageStep():
            return _language(step)
        case StopWordsStep():
            return _stop_words(step, segmented)
        case LemmatizeStep():
            return _lemmatize(step)
        case SegmentStep():
            cut_chinese("")  # finds a missing library now, and not in the first Chinese document
            return segment
        case FunctionStep():
            return checked_function(step.path)
    raise TypeError(f"{name_of(step)} needs the whole data set")


def _length(step: LengthStep, segmented: bool) -> Clean:
    least, most = step.min_chars or 0, step.max_chars or float("inf")
    fewest, max_words = step.min_words or 0, step.max_words or float("inf")
    if step.counts_words and not segmented:
        cut_chinese("")

    def keep_if_it_fits(text: str) -> str | None:
        if not least <= len(text) <= most:
            return None
        if step.counts_words and not fewest <= count_words(text, segmented=segmented) <= max_words:
            return None
        return text

    return keep_if_it_fits


def _language(step: LanguageStep) -> Clean:
    library("py3langid", name_of(step))
    classify, keep = _identifier().classify, frozenset(step.keep)

    def keep_if_spoken(text: str) -> str | None:
        language, probability = classify(text[:IDENTIFIED_CHARS])
        return text if language in keep and probability >= step.min_probability else None

    return keep_if_spoken


@cache
def _identifier() -> Any:
    """py3langid's identifier with probabilities: one of our own, as anybody may restrict the module's languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _stop_words(step: StopWordsStep, segmented: bool) -> Clean:
    words = frozenset(library("stopwordsiso", name_of(step)).stopwords(step.language))
    segmented = segmented or step.language != "zh"  # no other language's words are cut out of Chinese
    if not segmented:
        cut_chinese("")

    def unless_stop_word(word: str) -> str:
        return "" if word.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") in words else word

    return lambda text: replace_words(text, unless_stop_word, segmented=segmented)


def _lemmatize(step: LemmatizeStep) -> Clean:
    lemmatize = library("simplemma", name_of(step)).lemmatize

    @lru_cache(maxsize=LEMMAS_KEPT)
    def lemma(word: str) -> str:
        found: str = lemmatize(word, lang=step.language)
        return found

    return lambda text: replace_words(text, lemma, segmented=True)  # Chinese has no lemmas to be cut out
