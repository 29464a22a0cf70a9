"""Beam search: the likeliest text rather than the likeliest next token.

Shape suffixes: B inputs that are not done, K hypotheses of each, C candidates for the next step, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.decoding.decode import Continuation, evaluating
from model.seq2seq import Seq2Seq
from model.transformer import Transformer


def beam_search(
    model: Transformer | Seq2Seq,
    inputs: Sequence[Sequence[int]],
    max_new_tokens: int,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    end_of_text: int | None = None,
    vocab_limit: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The best text found for each input, all inputs at once.

    At each step the `beam_size` likeliest continuations that do not end are kept. One that ends is a result if it is
    among the `beam_size` likeliest of its step, those that do not end included. Results are compared by

        log P(Y | X) / lp(Y),   lp(Y) = ((5 + |Y|) / 6)^length_penalty   (Wu et al. 2016, eq. 14, no coverage term),

    where |Y| counts the end-of-text token. An input is done when no hypothesis could still beat its best result: its
    log-probability can only fall, and lp not exceed that of the longest text. So stopping early never changes what is
    found. Where nothing has ended after `max_new_tokens`, the likeliest hypothesis is the result.

    Args:
        model: its mode (training or evaluation) is restored afterwards; dropout is off meanwhile.
        inputs: prompts of a decoder or sources of an encoder-decoder, as for `generate`.
        max_new_tokens: tokens of a text at most, the end-of-text token counted; also `seq_len` for targets.
        beam_size: hypotheses kept; 1 is greedy decoding.
        length_penalty: exponent, >= 0; 0 compares log-probabilities, which favours short texts.
        end_of_text: a text ends with this token.
        vocab_limit: produce ids below this only; probabilities are over these.
        use_cache: whether to cache keys and values: the same tokens, faster.

    Returns:
        The new tokens of each input's best text, without its prompt and without the end-of-text token.

    Raises:
        ValueError: an input is empty, a source is longer than `source_len`, or a setting is out of range.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size} keeps no hypothesis. Use 1 for greedy decoding, 4 or 5 as usual.")
    if not 0.0 <= length_penalty < math.inf:
        raise ValueError(f"length_penalty={length_penalty} is not a number from 0 on. Use 0 for none, 0.6 as usual.")
    if not inputs:
        return []
    with evaluating(model):
        texts = Continuation(model, inputs, vocab_limit=vocab_limit, use_cache=use_cache)
        return _Search(
            texts, len(inputs), texts.max_new_tokens(max_new_tokens), beam_size, length_penalty, end_of_text
        ).run()


class _Search:
    """Hypotheses of all inputs and the best results so far."""

    def __init__(
        self, texts: Continuation, n_inputs: int, steps: int, beam_size: int, alpha: float, end_of_text: int | None
    ) -> None:
        self.texts, self.steps, self.beam_size, self.alpha = texts, steps, beam_size, alpha
        self.end_of_text = end_of_text
        self.inputs = list(range(n_inputs))  # those not done, in the order of rows
        self.best_scores = [-math.inf] * n_inputs
        self.best: list[list[int]] = [[] for _ in range(n_inputs)]

    def run(self) -> list[list[int]]:
        """Runs the search; returns the best text of each input."""
        log_probs_BK: Tensor | None = None
        for length in range(1, self.steps + 1):
            log_probs_BK = self._step(length, log_probs_BK)
            if log_probs_BK is None:
                return self.best
        for row, text in enumerate(self.inputs):
            if self.best_scores[text] == -math.inf and log_probs_BK is not None:
                self.best[text] = self.texts.new_tokens(row * log_probs_BK.shape[1])  # hypotheses are in order
        return self.best

    def _step(self, length: int, log_probs_BK: Tensor | None) -> Tensor | None:
        """Appends a token to every hypothesis; returns their log-probabilities, or None when the search is done."""
        next_BKV = torch.unflatten(self.texts.next_logits().log_softmax(dim=1), 0, (len(self.inputs), -1))
        n_hypotheses, vocab_size = next_BKV.shape[1:]
        totals_BKV = next_BKV if log_probs_BK is None else next_BKV + log_probs_BK.unsqueeze(2)
        # Each hypothesis can end in one way only, so this many candidates contain beam_size that continue, if any do.
        n_candidates = min(self.beam_size + n_hypotheses, n_hypotheses * vocab_size)
        totals_BC, places_BC = totals_BKV.flatten(1).topk(n_candidates, dim=1)
        parents_BC, tokens_BC = places_BC // vocab_size, places_BC % vocab_size
        ends_BC = torch.zeros_like(tokens_BC, dtype=torch.bool)
        if self.end_of_text is not None:
            ends_BC = tokens_BC == self.end_of_text
        self._keep_best_results(length, n_hypotheses, totals_BC, parents_BC, ends_BC)

        n_continuing = min(self.beam_size, int((~ends_BC).sum(dim=1).min()))
        if n_continuing == 0:
            return None
        totals_BK: Tensor
        totals_BK, chosen_BK = totals_BC.masked_fill(ends_BC, -math.inf).topk(n_continuing, dim=1)
        bounds = (totals_BK[:, 0] / self._penalty(self.steps)).tolist()
        going = [row for row, text in enumerate(self.inputs) if self.best_scores[text] < bounds[row]]
        if not going:
            return None
        rows_B = torch.tensor(going, device=totals_BK.device)
        chosen_BK = chosen_BK[rows_B]
        parents_BK = parents_BC[rows_B].gather(1, chosen_BK) + n_hypotheses * rows_B.unsqueeze(1)
        self.texts.extend(tokens_BC[rows_B].gather(1, chosen_BK).flatten(), parents_BK.flatten())
        self.inputs = [self.inputs[row] for row in going]
        return totals_BK[rows_B]

    def _keep_best_results(
        self, length: int, n_hypotheses: int, totals_BC: Tensor, parents_BC: Tensor, ends_BC: Tensor
    ) -> None:
        """Keeps ended texts that are better than earlier ones; candidates are in order, the best first."""
        ends_BC = ends_BC[:, : self.beam_size]
        first_B = ends_BC.int().argmax(dim=1, keepdim=True)
        found = zip(
            ends_BC.any(dim=1).tolist(),
            totals_BC.gather(1, first_B).squeeze(1).tolist(),
            parents_BC.gather(1, first_B).squeeze(1).tolist(),
            strict=True,
        )
        for row, (has_ended, total, parent) in enumerate(found):
            text, score = self.inputs[row], total / self._penalty(length)
            if has_ended and score > self.best_scores[text]:
                self.best_scores[text] = score
                self.best[text] = self.texts.new_tokens(row * n_hypotheses + parent)

    def _penalty(self, length: int) -> float:
        """lp of a text of this length (Wu et al. 2016, eq. 14)."""
        return float(((5 + length) / 6) ** self.alpha)
