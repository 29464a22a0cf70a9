"""`manta chaos`: trains a run while injecting faults, and compares it with an undisturbed one."""
