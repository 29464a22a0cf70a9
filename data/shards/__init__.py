"""Shards: listed, checked, pinned in a manifest, opened."""
