"""The order of samples, and how samples become micro-batches: pure functions of seed, data and step."""
