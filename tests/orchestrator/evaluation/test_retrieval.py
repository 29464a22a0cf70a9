"""NearestPair against dense TF-IDF vectors."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.evaluation.retrieval import NearestPair

inputs = st.lists(st.sampled_from(["get", "item", "Item", "of", "the_list", "set"]), min_size=1, max_size=6).map(
    " ".join
)


@settings(deadline=None, max_examples=60)
@given(st.lists(inputs, min_size=1, max_size=8, unique=True), inputs)
def test_the_nearest_pair_is_that_of_dense_vectors(known: list[str], asked: str) -> None:
    bags = [Counter(re.findall(r"[a-z]+", text.lower().replace("_", " "))) for text in [*known, asked]]
    words = sorted({word for bag in bags[:-1] for word in bag})
    idf = [math.log(len(known) / sum(word in bag for bag in bags[:-1])) + 1 for word in words]
    vectors = np.array([[bag[word] * weight for word, weight in zip(words, idf, strict=True)] for bag in bags])
    norms = np.linalg.norm(vectors, axis=1)
    found = NearestPair([(text, text) for text in known]).texts([asked])[0]
    if not norms[-1]:
        assert found == known[0]
        return
    cosines = vectors[:-1] @ vectors[-1] / norms[:-1] / norms[-1]
    assert cosines[known.index(found)] == pytest.approx(cosines.max())


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="no training pair"):
        NearestPair([])
