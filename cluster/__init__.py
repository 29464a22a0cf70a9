"""Clusters: their spec, nodes and jobs, locally, on Kubernetes and on VMs. Imports no other package of the project."""

__project__ = "manta"
