"""A trained model: evaluated, sampled, exported, imported."""
