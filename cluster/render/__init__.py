"""Renders a cluster's spec as files for Kubernetes and for Ray's cluster launcher."""
