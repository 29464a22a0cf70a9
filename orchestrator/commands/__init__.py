"""The `manta` commands: one module does the work of each command, `orchestrator/cli` parses its arguments."""
