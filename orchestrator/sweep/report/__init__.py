"""The report of a sweep: page, charts and tables."""
