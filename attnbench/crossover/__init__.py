"""What `attnbench crossover` does: where to measure next, what was found, and how it is said."""
