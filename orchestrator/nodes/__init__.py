"""The cluster of a run: the Ray session, requests for nodes, and messages about waiting for them."""
