"""The cluster of a run: Ray itself, requests for nodes, and what is waited for."""
