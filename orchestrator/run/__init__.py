"""A run as it is stored: record, fence, checkpoints, ledgers, summary. Imports neither Ray nor torch."""
