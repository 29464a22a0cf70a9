"""When the trials of a sweep run, and up to which step: the rules that compare them."""
