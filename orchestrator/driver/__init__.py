"""The process of `manta train`: one attempt at a run, from its claim to its end."""
