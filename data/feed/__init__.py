"""The feeder: micro-batches by step, rank and world size."""
