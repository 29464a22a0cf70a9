"""Models in the form that Hugging Face transformers reads and writes."""
