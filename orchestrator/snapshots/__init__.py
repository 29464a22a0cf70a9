"""Snapshots of a run's state in node memory, and how a worker group resumes from them."""
