"""Cleaning of documents before they are tokenized: the steps of `data.cleaning`, each a pure function of a text.

Nothing in here knows shards, storage or Ray. Libraries are imported by the step that needs them, when it is made.
"""
