"""Greedy decoding and sampling.

Shape suffixes: R rows (texts), V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.decoding.decode import Continuation, evaluating
from model.seq2seq import Seq2Seq
from model.transformer import Transformer


def generate(
    model: Transformer | Seq2Seq,
    inputs: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    end_of_text: int | None = None,
    vocab_limit: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Continues prompts, or writes the targets of sources, one token at a time; all inputs at once.

    Each text is the same as if its input were alone, up to rounding: neither its tokens nor its draws depend on the
    others. `model.decoding.decode.Continuation` says what happens at the end of the context.

    Args:
        model: its mode (training or evaluation) is restored afterwards; dropout is off meanwhile.
        inputs: at least one token each. For a decoder prompts, where an end-of-text token asks for a new document;
            for an encoder-decoder sources, in the form used in training.
        max_new_tokens: maximum number of new tokens; an encoder-decoder's targets end at its `seq_len` too.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among the k likeliest tokens only (Fan et al. 2018).
        top_p: sample among the fewest tokens whose probabilities reach p (Holtzman et al. 2020), after `top_k`.
        seed: of every text's own generator, or one seed for each; the global generator is not used.
        end_of_text: a text ends with this token.
        vocab_limit: produce ids below this only; the tokenizer's size, where the embedding is padded beyond it.
        use_cache: whether to cache keys and values: the same tokens, faster.

    Returns:
        The new tokens of each text, without its prompt and without the end-of-text token.

    Raises:
        ValueError: an input is empty, a source is longer than `source_len`, or a sampling setting is out of range.
    """
    _check_settings(len(inputs), temperature, top_k, top_p, seed)
    seeds = [seed] * len(inputs) if isinstance(seed, int) else seed
    # On the CPU whatever the model's device, so that samples do not depend on where it runs.
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    outputs: list[list[int]] = [[] for _ in inputs]
    if not inputs:
        return outputs
    with evaluating(model):
        texts = Continuation(model, inputs, vocab_limit=vocab_limit, use_cache=use_cache)
        alive = list(range(len(inputs)))
        for _ in range(texts.max_new_tokens(max_new_tokens)):
            tokens = _choose(texts.next_logits(), temperature, top_k, top_p, [generators[text] for text in alive])
            going = [row for row, token in enumerate(tokens) if token != end_of_text]
            for row in going:
                outputs[alive[row]].append(tokens[row])
            if not going:
                break
            device = model.output_weight.device
            texts.extend(
                torch.tensor([tokens[row] for row in going], device=device),
                torch.tensor(going, device=device) if len(going) < len(alive) else None,
            )
            alive = [alive[row] for row in going]
    return outputs


def _check_settings(
    n_inputs: int, temperature: float, top_k: int | None, top_p: float | None, seed: int | Sequence[int]
) -> None:
    if not temperature >= 0.0:
        raise ValueError(f"temperature={temperature} is below 0. Use 0 for the likeliest token, 1 for the model's own.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} leaves no token to choose. Use 1 or more, or None for all.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p} is outside (0, 1]. Use 1 or None for all tokens.")
    if not isinstance(seed, int) and len(seed) != n_inputs:
        raise ValueError(f"There are {len(seed)} seeds for {n_inputs} inputs. Give one for each, or one for all.")


def _choose(
    logits_RV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generators: list[torch.Generator]
) -> list[int]:
    """Chooses a token for each row."""
    if temperature == 0.0:
        likeliest: list[int] = logits_RV.argmax(dim=1).tolist()
        return likeliest
    sorted_RV, tokens_RV = (logits_RV.float().cpu() / temperature).sort(dim=1, descending=True, stable=True)
    probs_RV = sorted_RV[:, :top_k].softmax(dim=1)
    if top_p is not None:
        # A token stays if those before it have not reached p yet, so the likeliest always does.
        mass_before_RV = probs_RV.cumsum(dim=1) - probs_RV
        probs_RV = probs_RV.where(mass_before_RV < top_p, 0.0)
    return [
        int(tokens_V[torch.multinomial(probs_V, 1, generator=generator)])
        for tokens_V, probs_V, generator in zip(tokens_RV, probs_RV, generators, strict=True)
    ]
