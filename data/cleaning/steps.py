"""The steps that use one document at a time, as functions from a text to a text, or to None, which removes it."""

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
"""A step: takes a document's text, returns the new text, or None to remove the document. Pure."""

IDENTIFIED_CHARS = 4096
"""Characters from which a document's language is identified: more take time and change almost nothing."""

LEMMAS_KEPT = 1 << 16
"""Words whose lemmas a process caches: most words of a text are among the last so many different ones."""


def step_function(step: Step, *, segmented: bool) -> Clean:
    """The function of a step, with its library imported.

    Args:
        step: any but those that need the whole data set.
        segmented: whether an earlier step has separated Chinese words by spaces.

    Raises:
        InputError: a library is not installed, or a user's function cannot be imported; names the remedy.
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
            cut_chinese("")  # detects a missing library now, not in the first Chinese document
            return segment
        case FunctionStep():
            return checked_function(step.path)
    raise TypeError(f"{name_of(step)} needs the whole data set")


def _length(step: LengthStep, segmented: bool) -> Clean:
    least, most = step.min_chars or 0, step.max_chars or float("inf")
    min_words, max_words = step.min_words or 0, step.max_words or float("inf")
    if step.counts_words and not segmented:
        cut_chinese("")

    def keep_if_it_fits(text: str) -> str | None:
        if not least <= len(text) <= most:
            return None
        if step.counts_words and not min_words <= count_words(text, segmented=segmented) <= max_words:
            return None
        return text

    return keep_if_it_fits


def _language(step: LanguageStep) -> Clean:
    library("py3langid", name_of(step))
    classify, keep = _identifier().classify, frozenset(step.keep)

    def keep_if_identified(text: str) -> str | None:
        language, probability = classify(text[:IDENTIFIED_CHARS])
        return text if language in keep and probability >= step.min_probability else None

    return keep_if_identified


@cache
def _identifier() -> Any:
    """py3langid's identifier with probabilities. Not the module's own, whose languages other code may restrict."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _stop_words(step: StopWordsStep, segmented: bool) -> Clean:
    words = frozenset(library("stopwordsiso", name_of(step)).stopwords(step.language))
    segmented = segmented or step.language != "zh"  # only Chinese stop words are cut from Chinese text
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

    return lambda text: replace_words(text, lemma, segmented=True)  # Chinese has no lemmas, so it is not cut
