"""Data: object storage, manifest, tokenizer, sample order and the feeder. Knows Ray Data; knows nothing of models."""
