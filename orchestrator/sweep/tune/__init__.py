"""What Ray Tune runs, and the parts of it that run the legs of trials."""
