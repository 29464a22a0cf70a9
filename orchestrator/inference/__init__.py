"""Use of a trained model: evaluation, generation, export and import."""
