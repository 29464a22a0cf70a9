"""Feeding a run: the actor that makes micro-batches, what it hands out, and the held-out set."""
