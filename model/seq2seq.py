"""An encoder-decoder Transformer: the encoder reads a source, the decoder writes a target and attends to it.

Shape suffixes: B batch, S source tokens, T target tokens, D d_model, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import padding_mask
from model.blocks import Memory, Stack
from model.config import ModelConfig
from model.transformer import Transformer


class Encoder(Stack):
    """Blocks that see their whole sequence, padding excepted.

    Args:
        config: shape of the model.
        vocab_size: rows of an embedding of its own; None where the decoder's is used.
        source_len: longest source the positions cover.
    """

    def __init__(self, config: ModelConfig, vocab_size: int | None, source_len: int) -> None:
        super().__init__(config, config.encoder_layers, source_len, vocab_size, cross_attention=False)
        self.source_len = source_len
        self.draw_weights()

    def forward(self, embedded_BSD: Tensor, counts_B: Tensor) -> Memory:
        """Sources by their embeddings, (B, S, D), and the tokens each has, (B,); the rest is padding.

        Raises:
            ValueError: S > source_len.
        """
        n_tokens = embedded_BSD.shape[1]
        if n_tokens > self.source_len:
            raise ValueError(f"A source of {n_tokens} tokens is longer than source_len={self.source_len}. Shorten it.")
        mask_B11S = padding_mask(counts_B, n_tokens)
        return Memory(self.run_blocks(embedded_BSD, mask_B11S), mask_B11S)


class Seq2Seq(nn.Module):
    """Encoder and decoder with cross-attention (Vaswani et al. 2017, figure 1).

    Weights are drawn from torch's global generator: the same `torch.manual_seed` gives the same model.
    To compile it, call `model.compile()`.

    Args:
        config: shape of the model; its vocabulary sizes are already resolved into the arguments below.
        vocab_size: rows of the target's embedding, V.
        input_vocab_size: rows of the source's embedding; None if source and target share one vocabulary.
        seq_len: longest target the positions cover.
        source_len: longest source the positions cover.
        end_of_text: id of the token that every target begins with.

    Raises:
        ValueError: `config` is of a decoder, or has a size for a source embedding although it is the target's.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        input_vocab_size: int | None,
        seq_len: int,
        source_len: int,
        end_of_text: int,
    ) -> None:
        if config.architecture != "encoder_decoder":
            raise ValueError(
                f"architecture={config.architecture} has no encoder. Set it to encoder_decoder, or build a Transformer."
            )
        if input_vocab_size is None and config.input_vocab_size is not None:
            raise ValueError(
                f"input_vocab_size={config.input_vocab_size} needs a tokenizer for sources; they share the targets'. "
                f"Set it to null."
            )
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, input_vocab_size, source_len)
        self.decoder = Transformer(config, vocab_size, seq_len, end_of_text, cross_attention=True)
        self.seq_len = seq_len
        self.source_len = source_len
        self.end_of_text = end_of_text

    @property
    def output_weight(self) -> Tensor:
        """(V, D) weight of the output layer; the target's embedding when they are tied."""
        return self.decoder.output_weight

    def forward(
        self,
        sources_BS: Tensor,
        source_counts_B: Tensor,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Sum of the token losses of a micro-batch; padding on either side changes neither it nor any gradient.

        Args:
            sources_BS: (B, S) int64, S <= source_len.
            source_counts_B: (B,) int64, tokens of each source; the rest is padding, with any valid id.
            tokens_BT: (B, T) int64, T <= seq_len.
            targets_BT: (B, T) int64, the token after each position, or `loss.IGNORED_TARGET`.
            label_smoothing: see `loss.chunked_cross_entropy`; 0 for evaluation.

        Returns:
            () float32.

        Raises:
            ValueError: S > source_len or T > seq_len.
        """
        memory = self.encode(sources_BS, source_counts_B)
        return self.decoder.loss(self.decoder.hidden_states(tokens_BT, memory), targets_BT, label_smoothing)

    def encode(self, sources_BS: Tensor, source_counts_B: Tensor) -> Memory:
        """The encoder's output for the decoder; `forward` explains the arguments."""
        table = self.decoder.embedding if self.encoder.embedding is None else self.encoder.embedding
        memory: Memory = self.encoder(table(sources_BS), source_counts_B)
        return memory

    def logits(self, sources_BS: Tensor, source_counts_B: Tensor, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) scores of the token after each position; for inspection."""
        hidden_BTD = self.decoder.hidden_states(tokens_BT, self.encode(sources_BS, source_counts_B))
        return F.linear(hidden_BTD, self.output_weight)
