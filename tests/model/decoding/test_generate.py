from collections import Counter
from collections.abc import Callable

import pytest
import torch

from model.decoding.generate import generate
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

PROMPT = [3, 1, 4]


@pytest.fixture
def model(build: Callable[..., Transformer]) -> Transformer:
    """Peaked enough that words differ in likelihood: a fresh model's are nearly uniform."""
    model = build()
    with torch.no_grad():
        model.embedding.weight.mul_(10)
    return model


@pytest.fixture
def seq2seq(build_seq2seq: Callable[..., Seq2Seq]) -> Seq2Seq:
    """As above, in the original form."""
    model = build_seq2seq(preset="original")
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(3)
    return model


def greedy_by_hand(model: Transformer, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model.logits(torch.tensor([ids[-16:]]))[0, -1].argmax()))
    return ids[-count:]


def next_token_counts(model: Transformer, draws: int, **settings: object) -> Counter[int]:
    texts = generate(model, [PROMPT] * draws, 1, seed=list(range(draws)), **settings)
    return Counter(token for (token,) in texts)


def probabilities(model: Transformer, temperature: float = 1.0) -> torch.Tensor:
    return (model.logits(torch.tensor([PROMPT]))[0, -1] / temperature).softmax(dim=0)


def test_temperature_zero_takes_the_likeliest(model: Transformer) -> None:
    # 30 tokens: the context of 16 slides for the second half.
    expected = greedy_by_hand(model, PROMPT, 30)
    assert generate(model, [PROMPT], 30, temperature=0.0) == [expected]
    assert generate(model, [PROMPT], 30, top_k=1) == [expected]
    assert generate(model, [PROMPT], 30, top_p=1e-6) == [expected]


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_context_grows_to_the_sequence_length_and_then_slides(
    use_cache: bool, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[list[int]] = []
    hidden_states = model.hidden_states

    def recording(tokens: torch.Tensor, *arguments: object) -> torch.Tensor:
        contexts.append(tokens[0].tolist())
        return hidden_states(tokens, *arguments)

    monkeypatch.setattr(model, "hidden_states", recording)
    prompt = list(range(1, 15))
    ids = prompt + generate(model, [prompt], 5, temperature=5.0, use_cache=use_cache)[0]
    # With a cache only the new token is read, until the window slides.
    second, third = ([ids[14:15], ids[15:16]]) if use_cache else (ids[:15], ids[:16])
    assert contexts == [ids[:14], second, third, ids[1:17], ids[2:18]]


def test_the_seed_alone_decides(model: Transformer) -> None:
    first = generate(model, [PROMPT], 12, temperature=2.0, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert generate(model, [PROMPT], 12, temperature=2.0, seed=1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(model, [PROMPT], 12, temperature=2.0, seed=2) != first


def test_a_draw_does_not_depend_on_the_other_rows(model: Transformer) -> None:
    prompts = [PROMPT, [7], [9, 8, 7, 6, 5, 4, 3], PROMPT]
    settings = {"temperature": 3.0, "top_k": 20, "top_p": 0.9, "end_of_text": 9}
    alone = [generate(model, [p], 20, seed=seed, **settings)[0] for seed, p in enumerate(prompts)]
    assert generate(model, prompts, 20, seed=[0, 1, 2, 3], **settings) == alone
    assert generate(model, prompts[::-1], 20, seed=[3, 2, 1, 0], **settings) == alone[::-1]
    assert alone[0] != alone[3]
    # One seed is every row's: the same prompt gives the same text.
    first, _, _, last = generate(model, prompts, 20, seed=5, **settings)
    assert first == last == generate(model, [PROMPT], 20, seed=5, **settings)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(model: Transformer, temperature: float) -> None:
    counts = next_token_counts(model, draws=400, temperature=temperature)
    expected = probabilities(model, temperature)
    observed = torch.tensor([counts[token] / 400 for token in range(50)])
    # Half the summed difference; 400 fair draws stay well below 0.2, a wrong temperature does not.
    assert (observed - expected).abs().sum() / 2 < 0.2
    assert (observed - probabilities(model, 2 * temperature)).abs().sum() / 2 > 0.2


def test_top_k_draws_from_exactly_the_k_likeliest(model: Transformer) -> None:
    likeliest = set(probabilities(model).topk(4).indices.tolist())
    assert set(next_token_counts(model, draws=150, temperature=3.0, top_k=4)) == likeliest


def test_top_p_draws_from_the_fewest_that_reach_p(model: Transformer) -> None:
    ranked = sorted(enumerate(probabilities(model, 3.0).tolist()), key=lambda pair: -pair[1])
    nucleus, mass = set(), 0.0
    while mass < 0.4:
        token, probability = ranked[len(nucleus)]
        nucleus.add(token)
        mass += probability
    assert 1 < len(nucleus) < 50
    assert set(next_token_counts(model, draws=300, temperature=3.0, top_p=0.4)) == nucleus


def test_equal_logits_do_not_widen_top_k(model: Transformer) -> None:
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert len(next_token_counts(model, draws=60, top_k=3)) == 3


def test_end_of_text_stops_and_is_not_returned(model: Transformer) -> None:
    free = greedy_by_hand(model, PROMPT, 20)
    stop = free[4]
    assert generate(model, [PROMPT], 20, temperature=0.0, end_of_text=stop) == [free[: free.index(stop)]]


def test_padding_of_the_vocabulary_is_never_produced(model: Transformer) -> None:
    tokens = generate(model, [PROMPT], 40, temperature=100.0, vocab_limit=10)[0]
    assert set(tokens) <= set(range(10))
    assert max(generate(model, [PROMPT], 40, temperature=100.0)[0]) >= 10


def test_dropout_is_off_and_the_mode_comes_back(build: Callable[..., Transformer]) -> None:
    model = build(dropout=0.9)
    assert generate(model, [PROMPT], 10, temperature=0.0) == [greedy_by_hand(build(dropout=0.0), PROMPT, 10)]
    assert model.training
    model.eval()
    generate(model, [PROMPT], 1)
    assert not model.training


def test_an_encoder_decoder_writes_targets_up_to_its_length(seq2seq: Seq2Seq) -> None:
    sources = [[5, 6, 7, 0], [8, 0]]
    outputs = generate(seq2seq, sources, 100, temperature=0.0)
    for source, output in zip(sources, outputs, strict=True):
        ids = [0]
        for _ in range(12):
            logits = seq2seq.logits(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([ids]))
            ids.append(int(logits[0, -1].argmax()))
        assert output == ids[1:]
    assert outputs[0] != outputs[1]
    stop = outputs[0][3]
    stopped = generate(seq2seq, sources, 100, temperature=0.0, end_of_text=stop)
    assert stopped == [out[: out.index(stop)] if stop in out else out for out in outputs]


def test_no_input_gives_no_output(model: Transformer) -> None:
    assert generate(model, [], 5) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": [PROMPT, []]}, "Input 1 is empty"),
        ({"temperature": -1.0}, "temperature=-1.0 is below 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 leaves no token"),
        ({"top_p": 0.0}, r"top_p=0.0 is outside \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 is outside \(0, 1\]"),
        ({"seed": [1, 2]}, "There are 2 seeds for 1 inputs"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, object], message: str, model: Transformer) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, **({"inputs": [PROMPT], "max_new_tokens": 1} | settings))


def test_a_source_that_is_too_long_is_refused(seq2seq: Seq2Seq) -> None:
    with pytest.raises(ValueError, match="11 tokens is longer than source_len=10"):
        generate(seq2seq, [[1] * 11], 1)
