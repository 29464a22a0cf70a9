"""The command line of `manta`: arguments and help of every command. `--help` imports neither Ray nor torch."""
