"""Shards to documents: one file for each format."""
