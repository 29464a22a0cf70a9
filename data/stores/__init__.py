"""Object storage and local folders behind one interface."""
