"""Policies: observations in, decisions out. Pure."""
