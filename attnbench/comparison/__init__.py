"""What `attnbench compare` does: two sides, each of one or more processes, and a verdict for each case."""
