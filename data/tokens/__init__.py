"""Text to token ids: tokenizers, tokenized units, and reading them ahead of training."""
