"""Sweeps: Ray Tune over whole runs."""
