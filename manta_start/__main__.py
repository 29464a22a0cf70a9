"""`python -m manta_start`: the `manta` command, for jobs; a file of its own is what `-m` runs."""

from manta_start import main

main()
