"""What a run is: record, fence, checkpoints, ledgers, summary. Imports neither Ray nor torch."""
