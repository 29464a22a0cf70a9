"""The key-value cache: what it keeps, and that nothing else changes."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import ModelConfig
from model.decoding.beam_search import beam_search
from model.decoding.decode import Continuation, evaluating
from model.decoding.generate import generate
from model.seq2seq import Seq2Seq
from model.transformer import Transformer

FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2"},
    "llama": {},
    "grouped": {"n_kv_heads": 2},
    "documents apart": {"n_kv_heads": 1, "cross_document_attention": False},
    "original": {"preset": "original"},
    "pairs, original": {"architecture": "encoder_decoder", "preset": "original"},
    "pairs, grouped": {"architecture": "encoder_decoder", "n_kv_heads": 2},
    "pairs, learned": {"architecture": "encoder_decoder", "preset": "gpt2"},
}
Model = Transformer | Seq2Seq


@functools.cache
def model_of(form: str) -> Model:
    """In float64, where two ways to the same logits never choose different tokens; peaked, so that texts differ."""
    config = ModelConfig.model_validate({"n_layers": 2, "d_model": 32} | FORMS[form])
    torch.manual_seed(2)
    pairs = config.architecture == "encoder_decoder"
    model = Seq2Seq(config, 30, None, 14, 12, 0) if pairs else Transformer(config, 30, 14, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.double()


def logits_by_hand(model: Model, text: list[int], new: list[int]) -> Tensor:
    """(V,) scores of the next token, all computed anew for this text alone, without padding, mask or cache."""
    if isinstance(model, Seq2Seq):
        return model.logits(torch.tensor([text]), torch.tensor([len(text)]), torch.tensor([[0, *new]]))[0, -1]
    return model.logits(torch.tensor([(text + new)[-model.seq_len :]]))[0, -1]


inputs = st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(deadline=None, max_examples=20)
@given(form=st.sampled_from(list(FORMS)), inputs=inputs, data=st.data())
def test_scores_are_those_of_each_text_alone(form: str, inputs: list[list[int]], data: st.DataObject) -> None:
    """Rows are dropped, repeated and swapped at random on the way, in groups that share a source."""
    model = model_of(form)
    with evaluating(model):
        cached, anew = Continuation(model, inputs), Continuation(model, inputs, use_cache=False)
        rows: list[tuple[int, list[int]]] = [(number, []) for number in range(len(inputs))]
        sources = list(range(len(inputs)))
        for _ in range(data.draw(st.integers(1, 10))):
            first, second = cached.next_logits(), anew.next_logits()
            for row, (source, new) in enumerate(rows):
                expected = logits_by_hand(model, inputs[source], new)
                # Positions are kept in float32, to which everything else is exact.
                torch.testing.assert_close(first[row], expected, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(second[row], expected, rtol=1e-6, atol=1e-6)
            chosen: list[int] | None = None
            if data.draw(st.booleans()):
                kept = data.draw(st.lists(st.sampled_from(sources), min_size=1, unique=True).map(sorted))
                group = data.draw(st.integers(1, 3))
                chosen = []
                for source in kept:
                    own = [row for row, (other, _) in enumerate(rows) if other == source]
                    chosen += [data.draw(st.sampled_from(own)) for _ in range(group)]
                rows, sources = [rows[row] for row in chosen], kept
            tokens = [data.draw(st.integers(0, 29)) for _ in rows]
            rows = [(source, [*new, token]) for (source, new), token in zip(rows, tokens, strict=True)]
            for texts in (cached, anew):
                texts.extend(torch.tensor(tokens), None if chosen is None else torch.tensor(chosen))
        assert [cached.new_tokens(row) for row in range(len(rows))] == [new for _, new in rows]


@settings(deadline=None, max_examples=15)
@given(
    form=st.sampled_from(list(FORMS)),
    inputs=inputs,
    steps=st.integers(0, 16),
    decoding=st.sampled_from(["greedy", "sampling", "beam"]),
    end_of_text=st.one_of(st.none(), st.integers(0, 29)),
)
def test_texts_are_the_same_without_the_cache_and_one_by_one(
    form: str, inputs: list[list[int]], steps: int, decoding: str, end_of_text: int | None
) -> None:
    model = model_of(form)
    options = {"end_of_text": end_of_text, "vocab_limit": 28}

    def decode(some: list[list[int]], use_cache: bool) -> list[list[int]]:
        if decoding == "beam":
            return beam_search(model, some, steps, beam_size=3, use_cache=use_cache, **options)
        temperature = 0.0 if decoding == "greedy" else 1.5
        return generate(model, some, steps, temperature, top_k=10, use_cache=use_cache, **options)

    together = decode(inputs, True)
    assert decode(inputs, False) == together
    assert [decode([each], True)[0] for each in inputs] == together


@pytest.mark.parametrize("form", ["grouped", "pairs, original"])
def test_a_cached_step_reads_one_token(form: str) -> None:
    model = model_of(form)
    decoder = model.decoder if isinstance(model, Seq2Seq) else model
    seen: list[int] = []
    handle = decoder.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    generate(model, [[3, 4, 5], [6]], 5, temperature=0.0)
    handle.remove()
    assert seen == [1 if isinstance(model, Seq2Seq) else 3, 1, 1, 1, 1]


def test_a_source_is_encoded_once_and_its_keys_are_shared_by_all_beams() -> None:
    model = model_of("pairs, original")
    assert isinstance(model, Seq2Seq)
    calls: dict[str, list[tuple[int, ...]]] = {"encoder": [], "keys": []}
    handles = [
        module.register_forward_pre_hook(lambda _, arguments, name=name: calls[name].append(tuple(arguments[0].shape)))
        for name, module in (("encoder", model.encoder), ("keys", model.decoder.blocks[0].cross_attention.kv))
    ]
    beam_search(model, [[3, 4, 5, 0], [6, 0]], 8, beam_size=4)
    for handle in handles:
        handle.remove()
    assert calls == {"encoder": [(2, 4, 32)], "keys": [(2, 4, 32)]}


def test_finished_texts_are_computed_no_further() -> None:
    model = model_of("llama")
    free = generate(model, [[3, 4], [9]], 10, temperature=0.0)
    stop = next(token for token in free[0] if token not in free[1])
    rows: list[int] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    generate(model, [[3, 4], [9]], 10, temperature=0.0, end_of_text=stop)
    handle.remove()
    ends_at = free[0].index(stop) + 1
    assert rows == [2] * ends_at + [1] * (10 - ends_at)


def test_bf16_autocast_decodes() -> None:
    for form in ("grouped", "pairs, original"):
        config = ModelConfig.model_validate({"n_layers": 2, "d_model": 32} | FORMS[form])
        pairs = config.architecture == "encoder_decoder"
        model = Seq2Seq(config, 30, None, 14, 12, 0) if pairs else Transformer(config, 30, 14, 0)
        with torch.autocast("cpu", torch.bfloat16):
            assert len(generate(model, [[3, 4], [9]], 10)[1]) == 10
            assert len(beam_search(model, [[3, 4], [9]], 10)[1]) == 10
