"""Policies: observations in, decisions out. Pure: no clock of their own, no I/O, no Ray."""
