"""Shards: listed, inspected and pinned in a manifest; cached rows of their units."""
