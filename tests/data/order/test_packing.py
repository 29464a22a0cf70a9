"""Packing: sequences lose, repeat and move no token of a unit's stream."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order.packing import PackedBatching, UnitStream, count_sequences, pack, token_stream
from data.order.sample_order import Samples

END_OF_TEXT = 99
documents_of_tokens = st.lists(st.lists(st.integers(0, 98), max_size=30), max_size=8)
quick = settings(deadline=None, max_examples=60)


def stream_of_documents(documents: list[list[int]], dtype: type = np.uint16) -> np.ndarray:
    return token_stream([np.array(document, dtype) for document in documents], END_OF_TEXT, np.dtype(dtype))


def packed(stream: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Every sequence of a stream, in order."""
    count = count_sequences(len(stream), seq_len)
    return pack([stream] * count, range(count), seq_len)


@quick
@given(documents_of_tokens)
def test_a_stream_is_the_documents_between_boundaries(documents: list[list[int]]) -> None:
    stream = stream_of_documents(documents).tolist()
    if not documents:
        assert stream == []
        return
    assert stream[0] == stream[-1] == END_OF_TEXT
    pieces: list[list[int]] = []
    for token in stream[:-1]:
        pieces.append([]) if token == END_OF_TEXT else pieces[-1].append(token)
    assert pieces == documents


@quick
@given(documents_of_tokens, st.integers(2, 12))
def test_every_token_but_the_first_is_a_target_once_with_its_own_past(documents: list[list[int]], seq_len: int) -> None:
    stream = stream_of_documents(documents)
    tokens, target_counts = packed(stream, seq_len)
    assert tokens.shape == (len(target_counts), seq_len + 1)
    inputs, targets = [], []
    for row, count in zip(tokens.tolist(), target_counts.tolist(), strict=True):
        assert 1 <= count <= seq_len
        inputs += row[:count]
        targets += row[1 : count + 1]
    assert inputs == stream[:-1].tolist()
    assert targets == stream[1:].tolist()


@quick
@given(documents_of_tokens, st.integers(2, 12))
def test_only_the_last_sequence_is_padded_and_padding_is_zero(documents: list[list[int]], seq_len: int) -> None:
    tokens, target_counts = packed(stream_of_documents(documents), seq_len)
    assert (target_counts[:-1] == seq_len).all()
    for row, count in zip(tokens, target_counts, strict=True):
        assert not row[count + 1 :].any()


@pytest.mark.parametrize(
    "num_tokens, expected", [(0, 0), (1, 0), (2, 1), (4, 1), (5, 1), (6, 2), (9, 2), (10, 3), (4_000_001, 1_000_000)]
)
def test_count_of_sequences_of_four(num_tokens: int, expected: int) -> None:
    assert count_sequences(num_tokens, 4) == expected


@quick
@given(st.integers(0, 200), st.integers(2, 20))
def test_count_is_the_number_of_sequences_with_a_target(num_tokens: int, seq_len: int) -> None:
    starts = range(0, num_tokens, seq_len)
    assert count_sequences(num_tokens, seq_len) == sum(1 for start in starts if start + 1 < num_tokens)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_token_width_is_kept_up_to_the_largest_id(dtype: type) -> None:
    largest = np.iinfo(dtype).max
    stream = token_stream([np.array([0, largest], dtype)], largest - 1, np.dtype(dtype))
    assert stream.dtype == dtype and stream.tolist() == [largest - 1, 0, largest, largest - 1]
    tokens, target_counts = packed(stream, 2)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [[largest - 1, 0, largest], [largest, largest - 1, 0]]
    assert target_counts.dtype == np.int64 and target_counts.tolist() == [2, 1]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_no_documents_make_an_empty_stream_of_the_right_width(dtype: type) -> None:
    stream = token_stream([], 5, np.dtype(dtype))
    assert stream.dtype == dtype and len(stream) == count_sequences(0, 4) == 0


def test_an_empty_document_has_one_boundary_of_its_own() -> None:
    assert stream_of_documents([[], [1]]).tolist() == [END_OF_TEXT, END_OF_TEXT, 1, END_OF_TEXT]


def test_rows_may_come_from_any_streams_in_any_order() -> None:
    one, two = np.arange(10, dtype=np.uint16), np.arange(100, 107, dtype=np.uint16)
    tokens, target_counts = pack([two, one, two], [1, 2, 0], 4)
    assert tokens.tolist() == [[104, 105, 106, 0, 0], [8, 9, 0, 0, 0], [100, 101, 102, 103, 104]]
    assert target_counts.tolist() == [2, 1, 4]


def test_packing_does_not_change_the_stream() -> None:
    stream = np.arange(10, dtype=np.uint16)
    tokens, _ = pack([stream], [0], 4)
    tokens[:] = 7
    assert stream.tolist() == list(range(10))


@quick
@given(documents=documents_of_tokens, seq_len=st.integers(1, 9), epoch=st.integers(0, 5), seed=st.integers(0, 3))
def test_a_rotated_unit_has_every_token_as_a_target_once(
    documents: list[list[int]], seq_len: int, epoch: int, seed: int
) -> None:
    stream = stream_of_documents(documents)
    batching = PackedBatching(seq_len, 2, seed)
    count = batching.count(UnitStream(stream))
    places = np.arange(count)
    samples = Samples(0 * places, 0 * places + epoch, 0 * places, places)
    (batches,) = batching.steps(samples, {0: UnitStream(stream)}, 0) if count else ([],)
    read = [row[: n + 1].tolist() for b in batches for row, n in zip(b.tokens, b.target_counts, strict=True)]
    for before, after in itertools.pairwise(read):
        assert before[-1] == after[0], "neighbours share a token"
    targets = [token for row in read for token in row[1:]]
    ring = stream[1:].tolist()
    assert any(ring[start:] + ring[:start] == targets for start in range(max(1, len(ring))))
    if count:
        assert all(len(row) == seq_len + 1 for row in read[:-1])


def test_epochs_are_cut_from_different_positions() -> None:
    stream = stream_of_documents([list(range(1, 40))])
    batching = PackedBatching(5, 1, 7)
    firsts = {
        int(batching.steps(Samples(*np.array([[0], [epoch], [0], [0]])), {0: UnitStream(stream)}, 0)[0][0].tokens[0, 0])
        for epoch in range(30)
    }
    assert len(firsts) > 15
