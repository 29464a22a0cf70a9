"""The monitor: the actor through which training loop, controller and driver of an attempt learn of each other."""
