"""The forward pass and scores that training and inference share."""
