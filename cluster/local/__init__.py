"""Clusters, an S3 server and faults on this machine."""
