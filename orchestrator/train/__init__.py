"""What runs inside a training worker: the loop, its evaluation, and rank 0's reports and saves."""
