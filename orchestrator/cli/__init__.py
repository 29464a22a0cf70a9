"""The command line of `manta`. Neither Ray nor torch is imported for `--help`."""
