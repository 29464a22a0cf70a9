"""`manta doctor`: checks on this machine, its packages, the object storage, Ray, and a cluster."""
