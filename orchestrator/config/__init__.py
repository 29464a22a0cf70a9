"""Recipes and cluster specs: fields, rules between them, reading and reporting problems."""
