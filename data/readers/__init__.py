"""Readers: one module per format of shards, and the table of formats."""
