"""Recipes and cluster specs: their fields, the rules between fields, reading files, and reporting problems."""
