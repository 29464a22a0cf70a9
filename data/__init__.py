"""Data: object storage, manifest, tokenizer, sample order and the feeder. Uses Ray Data; imports nothing of models."""

__project__ = "manta"
