"""Object storage and folders behind one interface."""
