"""Cluster: what Manta starts around a run on one machine. Knows nothing of data or losses."""

__project__ = "manta"
