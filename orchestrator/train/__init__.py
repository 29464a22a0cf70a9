"""Training, inside a worker."""
