"""`manta chaos`: a run on a local cluster of real nodes, undisturbed and disturbed, and what every fault cost."""
