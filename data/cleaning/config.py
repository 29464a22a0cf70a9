"""The recipe's list `data.cleaning`: one section per kind of step."""

from __future__ import annotations

import difflib
import keyword
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from data.cleaning.libraries import IDENTIFIED, WITH_LEMMAS, WITH_STOP_WORDS
from data.section import Section


def _known(code: str, codes: frozenset[str], what: str) -> str:
    if code not in codes:
        near = difflib.get_close_matches(code, codes, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{code!r} is not a language with {what}; {hint}There are: {' '.join(sorted(codes))}")
    return code


def _stop_word_language(code: str) -> str:
    if code in ("ja", "th"):
        raise ValueError(f"{code!r} is written without spaces, and no segmentation of it is available; remove the step")
    return _known(code, WITH_STOP_WORDS, "a list of stop words")


def _lemma_language(code: str) -> str:
    if code in ("zh", "ja"):
        raise ValueError(f"{code!r} does not inflect its words, or has no dictionary here; remove the step")
    return _known(code, WITH_LEMMAS, "a dictionary of lemmas")


def _identified_language(code: str) -> str:
    return _known(code, IDENTIFIED, "a model that identifies it")


def _dotted(path: str) -> str:
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ValueError(f"{path!r} is not a path to a function; write module.function, such as my_steps.without_urls")
    return path


class TextStep(Section):
    """A step that uses one text at a time."""

    on: Literal["both", "input", "text"] = Field("both", description="Side of a pair to which it is applied.")


class UnicodeStep(TextStep):
    """Unicode normalization (UAX #15)."""

    step: Literal["unicode"] = Field(description="Normalizes the encoding of characters.")
    form: Literal["NFC", "NFD", "NFKC", "NFKD"] = Field(
        "NFC",
        description="Composed (C) or decomposed (D); K also replaces compatible characters: full width, ligatures.",
    )


class LowercaseStep(TextStep):
    """Lowercasing."""

    step: Literal["lowercase"] = Field(description="Turns all letters to lower case.")


class DedupStep(Section):
    """Exact deduplication over the whole data set."""

    step: Literal["dedup"] = Field(
        description="Keeps the first of documents with the same text at this step; held-out ones come first."
    )


class NearDedupStep(Section):
    """Near-duplicate removal over the whole data set: MinHash with locality-sensitive hashing.

    Sources: Broder 1997 (resemblance of documents by shingles and minima of hashes); Leskovec, Rajaraman & Ullman,
    Mining of Massive Datasets, 3.4 (bands).
    """

    step: Literal["near_dedup"] = Field(
        description="Keeps the first of documents with nearly the same text at this step; held-out ones come first."
    )
    threshold: float = Field(
        0.8, ge=0.5, le=1, description="Jaccard similarity of two documents' shingles from which they are duplicates."
    )
    shingle_chars: int = Field(
        9, ge=2, le=64, description="Characters in a shingle; a run of white space counts as one space."
    )
    permutations: Literal[64, 128, 256, 512] = Field(
        128, description="Bytes kept of each document; the similarity is known to sqrt(J (1 - J) / permutations)."
    )


class LengthStep(TextStep):
    """A filter by length."""

    step: Literal["length"] = Field(description="Removes documents that are too short or too long.")
    min_chars: int | None = Field(
        None, ge=1, description="Minimum characters (code points) of a document that is kept."
    )
    max_chars: int | None = Field(
        None, ge=1, description="Maximum characters (code points) of a document that is kept."
    )
    min_words: int | None = Field(None, ge=1, description="Minimum words of a document that is kept.")
    max_words: int | None = Field(None, ge=1, description="Maximum words of a document that is kept.")

    @model_validator(mode="after")
    def _has_bounds_in_order(self) -> Self:
        bounds = {name: getattr(self, name) for name in ("min_chars", "max_chars", "min_words", "max_words")}
        if all(value is None for value in bounds.values()):
            raise ValueError(f"no length is given; set one of {', '.join(bounds)}")
        for unit in ("chars", "words"):
            least, most = bounds[f"min_{unit}"], bounds[f"max_{unit}"]
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} = {least} is more than max_{unit} = {most}: nothing would be kept")
        return self

    @property
    def counts_words(self) -> bool:
        """Whether words are counted."""
        return self.min_words is not None or self.max_words is not None


class LanguageStep(TextStep):
    """A filter by language, identified from the beginning of the document."""

    step: Literal["language"] = Field(description="Removes documents in languages other than those of keep.")
    keep: tuple[Annotated[str, AfterValidator(_identified_language)], ...] = Field(
        min_length=1, description="Codes of the languages that are kept, such as en or zh."
    )
    min_probability: float = Field(
        0.0, ge=0, le=1, description="Minimum probability of the identified language for a document that is kept."
    )


class StopWordsStep(TextStep):
    """Stop-word removal."""

    step: Literal["stop_words"] = Field(description="Removes stop words, with the spaces after them.")
    language: Annotated[str, AfterValidator(_stop_word_language)] = Field(
        description="Code of the language whose list is used, such as en or zh."
    )


class LemmatizeStep(TextStep):
    """Lemmatization."""

    step: Literal["lemmatize"] = Field(description="Replaces every word by its dictionary form.")
    language: Annotated[str, AfterValidator(_lemma_language)] = Field(
        description="Code of the language whose dictionary is used, such as en."
    )


class SegmentStep(TextStep):
    """Word segmentation of a language that is written without spaces."""

    step: Literal["segment"] = Field(description="Puts spaces between the words of a language without spaces.")
    language: Literal["zh"] = Field("zh", description="Code of the language: zh.")


class FunctionStep(TextStep):
    """A user's function: takes a text, returns a text, or None to remove the document."""

    step: Literal["function"] = Field(
        description="Calls your own function: str -> str, or None to remove the document."
    )
    path: Annotated[str, AfterValidator(_dotted)] = Field(
        description="Import path, module.function; modules in the current folder are found."
    )


Step: TypeAlias = Annotated[
    UnicodeStep
    | LowercaseStep
    | DedupStep
    | NearDedupStep
    | LengthStep
    | LanguageStep
    | StopWordsStep
    | LemmatizeStep
    | SegmentStep
    | FunctionStep,
    Field(discriminator="step"),
]
"""One entry of `data.cleaning`."""

DedupSteps = (DedupStep, NearDedupStep)
"""The steps that depend on the whole data set and change no text."""


def name_of(step: Step) -> str:
    """A step's name in messages, with the setting that distinguishes it from others of its kind."""
    match step:
        case UnicodeStep():
            return f"unicode {step.form}"
        case LanguageStep():
            return f"language {', '.join(step.keep)}"
        case StopWordsStep() | LemmatizeStep() | SegmentStep():
            return f"{step.step} {step.language}"
        case FunctionStep():
            return f"function {step.path}"
        case NearDedupStep():
            return f"near_dedup {step.threshold:g}"
        case _:
            return step.step
