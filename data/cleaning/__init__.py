"""Cleaning of documents before they are tokenized: the steps of `data.cleaning`, each a pure function of a text.

Only `units` and `duplicate_pass` use shards and storage. A library is imported by the step that needs it.
"""
