"""Parameters and floating-point operations of a model, computed from its config, without torch."""

from typing import NamedTuple

from model.config import ModelConfig


class ParameterCount(NamedTuple):
    """Parameters of a model; a tied embedding counts once."""

    total: int
    """All trainable parameters."""
    non_embedding: int
    """Those in blocks and norms: all but token embedding, learned positions and an untied output layer."""


def count_parameters(
    config: ModelConfig,
    vocab_size: int,
    seq_len: int,
    *,
    input_vocab_size: int | None = None,
    source_len: int = 0,
) -> ParameterCount:
    """Counts the parameters of `Transformer(config, vocab_size, seq_len, ...)` or `Seq2Seq(config, ...)`.

    Args:
        config: shape of the model.
        vocab_size: rows of the embedding.
        seq_len: rows of learned positions.
        input_vocab_size: rows of the encoder's own embedding; None if it shares the decoder's.
        source_len: rows of the encoder's learned positions.
    """
    norm = config.d_model * (2 if config.has_biases else 1)
    final_norm = norm if config.pre_norm else 0
    block = _self_attention_weights(config) + _feed_forward_weights(config) + 2 * norm
    cross = _cross_attention_weights(config) + norm
    if config.has_biases:
        block += _qkv_width(config) + config.d_model + config.ff_width + config.d_model
        cross += _qkv_width(config) + config.d_model

    is_pair = config.architecture == "encoder_decoder"
    decoder = config.n_layers * (block + cross if is_pair else block) + final_norm
    encoder = config.encoder_layers * block + final_norm if is_pair else 0
    rows = vocab_size * (1 if config.tie_embeddings else 2) + (input_vocab_size or 0)
    if config.position_kind == "learned":
        rows += seq_len + (source_len if is_pair else 0)
    return ParameterCount(decoder + encoder + rows * config.d_model, decoder + encoder)


def flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Floating-point operations of one forward and backward pass, per token: 6 N + 12 n_layers d_model seq_len.

    N counts the weights that multiply: the matrices of the blocks and the output layer, tied or not. Each costs a
    multiplication and an addition forward and twice that backward (Kaplan et al. 2020, section 2.1). The second term
    is Q K^T and the product with V (Chowdhery et al. 2022, appendix B), over the full seq_len x seq_len square: that
    causality halves the work is not deducted, which is the convention behind published utilization figures.

    Not counted: norms, activations, softmax, embedding look-ups, the optimizer, and the forward pass that activation
    checkpointing repeats (so utilization computed from this is model, not hardware, utilization).
    """
    block = _self_attention_weights(config) + _feed_forward_weights(config)
    return 6 * (config.n_layers * block + vocab_size * config.d_model) + 12 * config.n_layers * config.d_model * seq_len


def flops_per_pair(config: ModelConfig, vocab_size: int, source_len: float, seq_len: float) -> float:
    """Floating-point operations of an encoder-decoder's forward and backward pass over a source and its target.

    Counted as in `flops_per_token`. The encoder's blocks and the keys and values of cross-attention are computed once a
    source token, all else once a target token; the two meet in a source_len x seq_len rectangle in each decoder block.
    Padding is computed like any token: for operations done rather than useful ones, lengths are those of the batch.

    Args:
        config: shape of the model.
        vocab_size: rows of the target's embedding.
        source_len: tokens of the source; a mean of several is near what they take together.
        seq_len: tokens of the target; likewise.
    """
    width, block = config.d_model, _self_attention_weights(config) + _feed_forward_weights(config)
    queries_and_output = 2 * width * width
    keys_and_values = _cross_attention_weights(config) - queries_and_output
    per_source_token = config.encoder_layers * block + config.n_layers * keys_and_values
    per_target_token = config.n_layers * (block + queries_and_output) + vocab_size * width
    squares = config.encoder_layers * source_len**2 + config.n_layers * (seq_len**2 + seq_len * source_len)
    return 6 * (source_len * per_source_token + seq_len * per_target_token) + 12 * width * squares


def _qkv_width(config: ModelConfig) -> int:
    return (config.n_heads + 2 * config.kv_heads) * config.head_size


def _self_attention_weights(config: ModelConfig) -> int:
    return config.d_model * _qkv_width(config) + config.d_model * config.d_model


def _cross_attention_weights(config: ModelConfig) -> int:
    """Equal to self-attention's: the same matrices, stored separately."""
    return _self_attention_weights(config)


def _feed_forward_weights(config: ModelConfig) -> int:
    return (3 if config.preset == "llama" else 2) * config.d_model * config.ff_width
