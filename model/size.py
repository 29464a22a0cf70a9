"""Parameters and floating-point operations of a model, from its config alone: no torch, nothing built."""

from typing import NamedTuple

from model.config import ModelConfig


class ParameterCount(NamedTuple):
    """Parameters of a model; a tied embedding counts once."""

    total: int
    """All trainable numbers."""
    non_embedding: int
    """Those inside blocks and norms: all but token embedding, learned positions and an untied output layer."""


def count_parameters(config: ModelConfig, vocab_size: int, seq_len: int) -> ParameterCount:
    """Count the parameters `Transformer(config, vocab_size, seq_len, ...)` has.

    Args:
        config: shape of the model.
        vocab_size: rows of the embedding.
        seq_len: learned positions (gpt2 only).
    """
    is_gpt2 = config.preset == "gpt2"
    norm = config.d_model * (2 if is_gpt2 else 1)
    biases = _qkv_width(config) + config.d_model + config.ff_width + config.d_model if is_gpt2 else 0
    block = _matrix_weights_per_block(config) + biases + 2 * norm
    non_embedding = config.n_layers * block + norm

    token_tables = 1 if config.tie_embeddings else 2
    positions = seq_len if is_gpt2 else 0
    return ParameterCount(non_embedding + (token_tables * vocab_size + positions) * config.d_model, non_embedding)


def flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Floating-point operations of one forward and backward pass, per token: 6 N + 12 n_layers d_model seq_len.

    N counts the weights that multiply: the matrices of the blocks and the output layer, tied or not. Each costs a
    multiplication and an addition forward and twice that backward (Kaplan et al. 2020, section 2.1). The second term
    is Q K^T and the product with V (Chowdhery et al. 2022, appendix B), over the full seq_len x seq_len square: that
    causality halves the work is not deducted, which is the convention behind published utilization figures.

    Not counted: norms, activations, softmax, embedding look-ups, the optimizer, and the forward pass that activation
    checkpointing repeats (so utilization computed from this is model, not hardware, utilization).
    """
    weights = config.n_layers * _matrix_weights_per_block(config) + vocab_size * config.d_model
    return 6 * weights + 12 * config.n_layers * config.d_model * seq_len


def _qkv_width(config: ModelConfig) -> int:
    return (config.n_heads + 2 * config.kv_heads) * config.head_size


def _matrix_weights_per_block(config: ModelConfig) -> int:
    attention = config.d_model * _qkv_width(config) + config.d_model * config.d_model
    feed_forward_matrices = 2 if config.preset == "gpt2" else 3
    return attention + feed_forward_matrices * config.d_model * config.ff_width
