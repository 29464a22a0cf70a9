"""The process of `manta train`: one attempt at a run, from claiming it to its end."""
