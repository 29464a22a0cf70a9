"""The worker group, on the controller's side. Imports no torch."""
