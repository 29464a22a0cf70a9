"""Observing a live sweep: metrics, trackers and TensorBoard's HParams. Nothing here decides."""
