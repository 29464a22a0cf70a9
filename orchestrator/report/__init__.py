"""Reports of runs as self-contained HTML pages and as terminal tables, and the parts that sweeps' reports share."""
