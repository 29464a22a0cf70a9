"""NearestPair: a retrieval baseline for encoder-decoders, the text of the training pair with the nearest input."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+")


class NearestPair:
    """Retrieval by cosine of TF-IDF vectors over the words of inputs (Salton & Buckley 1988, tfc weights).

    Args:
        pairs: (input, text) of training.

    Raises:
        ValueError: there are no pairs.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        inputs: list[Counter[str]] = []
        self._texts: list[str] = []
        for read, text in pairs:
            inputs.append(_words(read))
            self._texts.append(text)
        if not inputs:
            raise ValueError("There is no training pair to retrieve from.")
        seen_in = Counter(word for words in inputs for word in words)
        self._idf = {word: math.log(len(inputs) / count) + 1.0 for word, count in seen_in.items()}
        postings: dict[str, list[tuple[int, float]]] = {word: [] for word in seen_in}
        for number, words in enumerate(inputs):
            for word, weight in self._vector(words).items():
                postings[word].append((number, weight))
        self._postings = {
            word: (np.array([number for number, _ in found]), np.array([weight for _, weight in found]))
            for word, found in postings.items()
        }

    def texts(self, inputs: Sequence[str]) -> list[str]:
        """For each input the text of the nearest training input; the first of equally near ones."""
        return [self._texts[self._nearest(read)] for read in inputs]

    def _nearest(self, read: str) -> int:
        scores = np.zeros(len(self._texts))
        for word, weight in self._vector(_words(read)).items():
            numbers, weights = self._postings[word]
            scores[numbers] += weight * weights
        return int(scores.argmax())

    def _vector(self, words: Counter[str]) -> dict[str, float]:
        known = {word: count * self._idf[word] for word, count in words.items() if word in self._idf}
        norm = math.sqrt(sum(weight * weight for weight in known.values()))
        return {word: weight / norm for word, weight in known.items()}


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))
