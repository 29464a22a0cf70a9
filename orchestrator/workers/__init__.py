"""The worker group: its controller's process, which imports no torch, and its workers' processes."""
