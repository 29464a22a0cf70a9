"""The order of training data as pure functions: samples, packing, pairs."""
