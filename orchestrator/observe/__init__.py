"""Observing a live run: Prometheus metrics, TensorBoard event files and experiment trackers. Nothing here decides."""
