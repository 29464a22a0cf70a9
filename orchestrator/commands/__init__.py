"""What each `manta` command does."""
