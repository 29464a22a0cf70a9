"""A decoder-only Transformer in the style of GPT-2, Llama or Vaswani et al. 2017; also the decoder of `model.seq2seq`.

Shape suffixes: B batch, T tokens, L tokens attended to, D d_model, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import document_mask
from model.blocks import Memory, Stack
from model.cache import Cache
from model.config import ModelConfig
from model.loss import chunked_cross_entropy


class Transformer(Stack):
    """Token embedding, causal blocks and an output layer.

    Weights are drawn from torch's global generator: the same `torch.manual_seed` gives the same model.
    To compile it, call `model.compile()`, which works in place: `torch.compile(model)` would rename every parameter.

    Args:
        config: shape of the model; its `vocab_size` is already resolved into the argument below.
        vocab_size: rows of the embedding, V.
        seq_len: longest sequence the positions cover.
        end_of_text: id of the token that opens a document, needed to separate documents.
        cross_attention: whether blocks also attend to an encoder's output.

    Raises:
        ValueError: documents must be separated, but there is no end-of-text token to recognise them by.
    """

    embedding: nn.Embedding

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        seq_len: int,
        end_of_text: int | None,
        *,
        cross_attention: bool = False,
    ) -> None:
        if not config.cross_document_attention and end_of_text is None:
            raise ValueError(
                "cross_document_attention=False needs an end-of-text token to find documents, but end_of_text=None. "
                "Use a tokenizer that has one, or set cross_document_attention to True."
            )
        super().__init__(config, config.n_layers, seq_len, vocab_size, cross_attention=cross_attention)
        self.seq_len = seq_len
        self.end_of_text = end_of_text
        self.output = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)
        self.draw_weights()

    @property
    def output_weight(self) -> Tensor:
        """(V, D) weight of the output layer; the token embedding when they are tied (Press & Wolf 2017)."""
        return self.embedding.weight if self.output is None else self.output.weight

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum of the token losses of a micro-batch.

        A sum, not a mean: the caller divides by the target tokens of the whole step, so that uneven micro-batches
        have the right weight.

        Args:
            tokens_BT: (B, T) int64, T <= seq_len.
            targets_BT: (B, T) int64, the token after each position, or `loss.IGNORED_TARGET`.
            label_smoothing: see `chunked_cross_entropy`; 0 for evaluation.

        Returns:
            () float32.

        Raises:
            ValueError: T > seq_len.
        """
        return self.loss(self.hidden_states(tokens_BT), targets_BT, label_smoothing)

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor, label_smoothing: float) -> Tensor:
        """() float32, sum of the token losses of (B, T, D) hidden states; `forward` explains the other arguments."""
        loss: Tensor = chunked_cross_entropy(
            hidden_BTD.flatten(0, 1),
            self.output_weight,
            targets_BT.flatten(),
            self.config.loss_chunk_tokens,
            label_smoothing,
        )
        return loss

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) scores of the token after each position; for inspection, since training never needs them all."""
        return F.linear(self.hidden_states(tokens_BT), self.output_weight)

    def hidden_states(self, tokens_BT: Tensor, memory: Memory | None = None, cache: Cache | None = None) -> Tensor:
        """(B, T, D) output of the final norm for (B, T) int64 tokens.

        Args:
            tokens_BT: whole sequences; with a cache, the tokens after those in the cache.
            memory: the encoder's output, for cross-attention.
            cache: keys and values of earlier calls; those of these tokens are appended.

        Raises:
            ValueError: T > seq_len.
        """
        n_tokens = tokens_BT.shape[1]
        if n_tokens > self.seq_len:
            raise ValueError(f"A sequence of {n_tokens} tokens is longer than seq_len={self.seq_len}. Shorten it.")
        positions_BT = None if cache is None else cache.advance(n_tokens)
        return self.run_blocks(self.embedding(tokens_BT), self._mask(tokens_BT, cache), memory, cache, positions_BT)

    def _mask(self, tokens_BT: Tensor, cache: Cache | None) -> Tensor | None:
        """(B, 1, T, L) bool, True where row attends to column; None means plain causal."""
        mask_B1TL = None if cache is None else cache.visible(tokens_BT.shape[1])
        if self.config.cross_document_attention:
            return mask_B1TL
        assert self.end_of_text is not None
        if cache is None or mask_B1TL is None:
            return document_mask(tokens_BT, self.end_of_text)
        return mask_B1TL & cache.same_document(tokens_BT, self.end_of_text)
