"""Orchestrator: config, command line, driver, training loop, checkpoints and ledgers. Nothing imports it."""

__project__ = "manta"
