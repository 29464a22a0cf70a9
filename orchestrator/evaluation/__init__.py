"""The forward pass and the scores, shared by training and inference."""
