"""Text from a model: greedy, sampled, or by beam search."""
