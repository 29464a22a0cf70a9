"""Text to token ids: tokenizers, tokenized units, and the tasks that make them."""
