"""Reports: pages of HTML that need nothing else, of runs and of sweeps."""
