"""A run seen from outside while it goes on: metrics, event files and trackers; nothing here decides anything."""
