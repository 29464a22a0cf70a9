"""Beam search against all possible texts, and against a slow search that keeps hypotheses in a list."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.decoding.beam_search import beam_search
from model.decoding.generate import generate
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

END = 0
Model = Transformer | Seq2Seq


def small_model(seed: int, vocab_size: int, *, pairs: bool, peaked: float = 6.0) -> Model:
    """Random, and sure enough of itself that texts differ in likelihood."""
    torch.manual_seed(seed)
    config = ModelConfig(
        architecture="encoder_decoder" if pairs else "decoder", n_layers=1, d_model=16, n_heads=2, tie_embeddings=False
    )
    model = Seq2Seq(config, vocab_size, None, 8, 8, END) if pairs else Transformer(config, vocab_size, 8, END)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(peaked)
    return model.double()


def bigram_model(log_probs_VV: torch.Tensor) -> Transformer:
    """A model whose next token depends on the last one alone: row i of the table holds log P(. | i)."""
    size = len(log_probs_VV)
    config = ModelConfig(n_layers=1, d_model=size, n_heads=1, tie_embeddings=False)
    model = Transformer(config, size, 8, END).double()
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
        model.blocks[0].feed_forward.down.weight.zero_()
        model.embedding.weight.copy_(100 * torch.eye(size))  # the norm makes sqrt(size) of each one, but for its eps
        model.output.weight.copy_(log_probs_VV.T / size**0.5)
    return model


def log_probs_after(model: Model, given_ids: list[int], new: list[int]) -> list[float]:
    if isinstance(model, Seq2Seq):
        logits = model.logits(torch.tensor([given_ids]), torch.tensor([len(given_ids)]), torch.tensor([[END, *new]]))
    else:
        logits = model.logits(torch.tensor([(given_ids + new)[-model.seq_len :]]))
    return logits[0, -1].log_softmax(dim=0).tolist()


def score(log_prob: float, length: int, alpha: float) -> float:
    return log_prob / ((5 + length) ** alpha / (5 + 1) ** alpha)


def best_of_all_texts(model: Model, given_ids: list[int], steps: int, alpha: float, vocab_size: int) -> list[int]:
    """Every text of up to `steps` tokens that ends, scored whole."""
    best, best_score = [], -math.inf
    words = [word for word in range(vocab_size) if word != END]
    known: dict[tuple[int, ...], list[float]] = {}
    for length in range(steps):
        for text in itertools.product(words, repeat=length):
            log_prob = 0.0
            for place, token in enumerate([*text, END]):
                if text[:place] not in known:
                    known[text[:place]] = log_probs_after(model, given_ids, list(text[:place]))
                log_prob += known[text[:place]][token]
            if score(log_prob, length + 1, alpha) > best_score:
                best, best_score = list(text), score(log_prob, length + 1, alpha)
    return best


def slow_beam_search(model: Model, given_ids: list[int], steps: int, beam_size: int, alpha: float) -> list[int]:
    """To the last step, without stopping early; hypotheses in lists, sorted by log-probability."""
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    results: list[tuple[float, list[int]]] = []
    for length in range(1, steps + 1):
        candidates = [
            (log_prob + added, [*text, token])
            for log_prob, text in going
            for token, added in enumerate(log_probs_after(model, given_ids, text))
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        results += [(score(p, length, alpha), text[:-1]) for p, text in candidates[:beam_size] if text[-1] == END]
        going = [candidate for candidate in candidates if candidate[1][-1] != END][:beam_size]
        if not going:
            break
    return max(results, key=lambda result: result[0])[1] if results else going[0][1]


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    pairs=st.booleans(),
    steps=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_beam_as_wide_as_the_world_finds_the_best_text(
    seed: int, pairs: bool, steps: int, alpha: float, prompts: list[list[int]]
) -> None:
    model = small_model(seed, 4, pairs=pairs)
    found = beam_search(model, prompts, steps, beam_size=4**4, length_penalty=alpha, end_of_text=END)
    with torch.no_grad():
        assert found == [best_of_all_texts(model, prompt, steps, alpha, 4) for prompt in prompts]


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    pairs=st.booleans(),
    steps=st.integers(1, 8),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    beam_size=st.integers(1, 5),
    prompts=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), min_size=1, max_size=4),
    peaked=st.sampled_from([4.0, 6.0, 9.0]),
)
def test_a_narrow_beam_finds_what_a_slow_search_finds(
    seed: int, pairs: bool, steps: int, alpha: float, beam_size: int, prompts: list[list[int]], peaked: float
) -> None:
    model = small_model(seed, 9, pairs=pairs, peaked=peaked)
    found = beam_search(model, prompts, steps, beam_size=beam_size, length_penalty=alpha, end_of_text=END)
    with torch.no_grad():
        assert found == [slow_beam_search(model, prompt, steps, beam_size, alpha) for prompt in prompts]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 100_000),
    ending=st.floats(-2.0, 4.0),
    steps=st.integers(1, 8),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 3.0]),
    beam_size=st.integers(1, 4),
)
def test_texts_that_end_at_all_lengths_are_compared_as_in_a_slow_search(
    seed: int, ending: float, steps: int, alpha: float, beam_size: int
) -> None:
    table_VV = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table_VV[:, END] += ending
    model = bigram_model(table_VV.log_softmax(dim=1))
    found = beam_search(model, [[1], [2]], steps, beam_size=beam_size, length_penalty=alpha, end_of_text=END)
    with torch.no_grad():
        slow = [slow_beam_search(model, [word], steps, beam_size, alpha) for word in (1, 2)]
    # Where only the last token counts, the same pairs of neighbours in another order are exactly as likely.
    assert [neighbours(1, found[0]), neighbours(2, found[1])] == [neighbours(1, slow[0]), neighbours(2, slow[1])]


def neighbours(word: int, text: list[int]) -> list[tuple[int, int]]:
    """Every token with the one before it, whatever their order."""
    return sorted(itertools.pairwise([word, *text]))


def test_a_longer_text_may_win_after_a_shorter_one_has_ended() -> None:
    # After 5 the text ends or goes on with 1, 2, 3, 4 and then ends.
    chances = torch.full((6, 6), 1e-9, dtype=torch.float64)
    for word, follower in ((1, 2), (2, 3), (3, 4), (4, END), (END, END), (5, 1)):
        chances[word, follower] = 1.0
    chances[5] = torch.tensor([0.55, 0.45, 1e-9, 1e-9, 1e-9, 1e-9])
    model = bigram_model(chances.log())
    assert beam_search(model, [[5]], 8, beam_size=2, length_penalty=0.0, end_of_text=END) == [[]]
    assert beam_search(model, [[5]], 8, beam_size=2, length_penalty=1.0, end_of_text=END) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("pairs", [False, True])
def test_without_an_end_the_likeliest_whole_text_is_found(pairs: bool) -> None:
    model = small_model(3, 4, pairs=pairs)
    with torch.no_grad():
        expected = max(
            itertools.product(range(4), repeat=4),
            key=lambda text: sum(log_probs_after(model, [1, 2], list(text[:t]))[text[t]] for t in range(4)),
        )
    assert beam_search(model, [[1, 2]], 4, beam_size=256) == [list(expected)]


def test_a_search_ends_when_nothing_better_can_come() -> None:
    model = small_model(5, 9, pairs=True)
    with torch.no_grad():
        model.decoder.norm.weight.zero_()  # all words are equally likely, wherever
    steps: list[int] = []
    handle = model.decoder.blocks[0].register_forward_pre_hook(lambda *_: steps.append(1))
    # Each further token costs log 9 and, without a penalty on short texts, wins nothing.
    assert beam_search(model, [[1, 2]], 8, beam_size=9, length_penalty=0.0, end_of_text=END) == [[]]
    assert len(steps) == 1
    handle.remove()


def test_a_beam_of_one_is_greedy_and_wider_ones_find_likelier_texts() -> None:
    model = small_model(8, 9, pairs=False)
    prompts = [[1, 2, 3], [4], [5, 6]]
    assert beam_search(model, prompts, 12, beam_size=1) == generate(model, prompts, 12, temperature=0.0)

    @torch.no_grad()
    def log_prob(prompt: list[int], text: list[int]) -> float:
        return sum(log_probs_after(model, prompt, text[:t])[text[t]] for t in range(len(text)))

    narrow, wide = (beam_search(model, prompts, 5, beam_size=size) for size in (1, 50))
    gains = [log_prob(p, w) - log_prob(p, n) for p, n, w in zip(prompts, narrow, wide, strict=True)]
    assert min(gains) > -1e-9 and max(gains) > 1e-3


@pytest.mark.slow
def test_ten_pairs_are_learned_by_heart(build_seq2seq: Callable[..., Seq2Seq]) -> None:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 9, (10,), generator=generator).tolist()
    sources = [[*torch.randint(1, 50, (length,), generator=generator).tolist(), 0] for length in lengths]
    targets = [torch.randint(1, 50, (9 - length,), generator=generator).tolist() for length in lengths]
    padded_sources = torch.tensor([source + [0] * (9 - len(source)) for source in sources])
    counts = torch.tensor([len(source) for source in sources])
    tokens = torch.tensor([[0, *target] + [0] * (8 - len(target)) for target in targets])
    labels = torch.tensor([[*target, 0] + [-100] * (8 - len(target)) for target in targets])

    model = build_seq2seq(preset="original", d_model=64, dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    for _ in range(150):
        optimizer.zero_grad()
        (model(padded_sources, counts, tokens, labels, label_smoothing=0.1) / 60).backward()
        optimizer.step()
    assert generate(model, sources, 12, temperature=0.0, end_of_text=0) == targets
    assert beam_search(model, sources, 12, beam_size=5, end_of_text=0) == targets


def test_vocabulary_is_limited_and_the_mode_comes_back() -> None:
    model = small_model(1, 9, pairs=True)
    assert max(beam_search(model, [[1]] * 3, 8, vocab_limit=2, beam_size=3)[0]) < 2
    assert model.training
    assert beam_search(model, [], 8) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "beam_size=0 keeps no hypothesis"),
        ({"length_penalty": -0.1}, r"length_penalty=-0\.1 is not a number from 0 on"),
        ({"length_penalty": math.nan}, "length_penalty=nan"),
        ({"inputs": [[]]}, "Input 0 is empty"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(small_model(1, 9, pairs=False), **({"inputs": [[1]], "max_new_tokens": 1} | settings))
