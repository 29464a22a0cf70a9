"""Shared by greedy decoding, sampling and beam search: growing texts, and the model's scores of their next tokens.

Shape suffixes: R rows (texts), L tokens so far, S source tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from model.blocks import Memory
from model.cache import Cache
from model.seq2seq import Seq2Seq
from model.transformer import Transformer


class Continuation:
    """Texts that a model continues token by token, each as if it were alone.

    Keys and values of processed tokens are cached. A decoder whose longest text exceeds `seq_len` sees the last
    `seq_len` tokens, at positions that begin at 0 again; since positions then change with every token, the cache is not
    used from then on. An encoder-decoder processes its sources once, and its texts end at `seq_len`.

    Args:
        model: in evaluation mode; see `evaluating`.
        inputs: prompts to continue; for an encoder-decoder sources, whose targets begin with `model.end_of_text`.
        vocab_limit: score ids below this only; the tokenizer's size, where the embedding is padded beyond it.
        use_cache: whether to cache keys and values; without a cache everything is computed again for every token.

    Raises:
        ValueError: an input is empty, or a source is longer than `source_len`.
    """

    def __init__(
        self,
        model: Transformer | Seq2Seq,
        inputs: Sequence[Sequence[int]],
        *,
        vocab_limit: int | None = None,
        use_cache: bool = True,
    ) -> None:
        _refuse_empty(inputs)
        device = model.output_weight.device
        self._vocab_limit = vocab_limit
        self._use_cache = use_cache
        self._cache: Cache | None = None
        self._memory: Memory | None = None
        if isinstance(model, Seq2Seq):
            counts_R = torch.tensor([len(source) for source in inputs], device=device)
            self._memory = model.encode(_padded(inputs, device, left=False), counts_R)
            self._decoder, prompts = model.decoder, [[model.end_of_text]] * len(inputs)
        else:
            self._decoder, prompts = model, [list(prompt) for prompt in inputs]
        self._tokens_RL = _padded(prompts, device, left=True)
        self._padding_R = self._tokens_RL.shape[1] - torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._source_R = torch.arange(len(inputs), device=device)
        self._new_from = self._tokens_RL.shape[1]

    def max_new_tokens(self, wanted: int) -> int:
        """Number of new tokens that fit, at most `wanted`."""
        return wanted if self._memory is None else min(wanted, self._decoder.seq_len)

    def new_tokens(self, row: int) -> list[int]:
        """The tokens that have been appended to a text."""
        tokens: list[int] = self._tokens_RL[row, self._new_from :].tolist()
        return tokens

    def next_logits(self) -> Tensor:
        """(R, V) scores of each text's next token, float32 or wider. Must be called once before each new token."""
        seq_len = self._decoder.seq_len
        first = int(self._padding_R.min())
        slid = self._tokens_RL.shape[1] - first > seq_len
        cache, context_RL = self._cache, self._tokens_RL
        if cache is None or slid:
            first = max(first, context_RL.shape[1] - seq_len)
            cache = Cache(len(self._decoder.blocks), (self._padding_R - first).clamp(min=0))
            context_RL = context_RL[:, first:]
        else:
            context_RL = context_RL[:, -1:]
        self._cache = cache if self._use_cache and not slid else None
        hidden_RD = self._decoder.hidden_states(context_RL, self._memory, cache)[:, -1]
        logits_RV = F.linear(hidden_RD, self._decoder.output_weight)[:, : self._vocab_limit]
        return logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))

    def extend(self, tokens_R: Tensor, rows: Tensor | None = None) -> None:
        """Appends a token to every text, or to those in `rows` only, dropping the others.

        Args:
            tokens_R: (R,) int64.
            rows: (R,) int64, the text that each token is appended to. A text may occur several times; then all sources
                of an encoder-decoder must have equally many texts, side by side. None means all, in order.
        """
        if rows is not None:
            self._select(rows)
        self._tokens_RL = torch.cat((self._tokens_RL, tokens_R.unsqueeze(1)), dim=1)

    def _select(self, rows: Tensor) -> None:
        self._tokens_RL, self._padding_R = self._tokens_RL[rows], self._padding_R[rows]
        if self._cache is not None:
            self._cache.select(rows)
        sources, self._source_R = torch.unique_consecutive(self._source_R[rows], return_inverse=True)
        if self._memory is not None and len(sources) < len(self._memory.states_BSD):
            self._memory = Memory(self._memory.states_BSD[sources], self._memory.mask_B11S[sources])
            if self._cache is not None:
                self._cache.select_memory(sources)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Disables dropout and gradients inside the block; restores the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _refuse_empty(inputs: Sequence[Sequence[int]]) -> None:
    for number, ids in enumerate(inputs):
        if not ids:
            raise ValueError(
                f"Input {number} is empty, and a model needs a token to begin with. Use the end-of-text token."
            )


def _padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> Tensor:
    """(R, L) int64 with zeros on one side of the shorter rows."""
    length = max(len(row) for row in rows)
    padding = [[0] * (length - len(row)) for row in rows]
    both = zip(padding, rows, strict=True) if left else zip(rows, padding, strict=True)
    return torch.tensor([[*first, *second] for first, second in both], device=device)
