"""`attnbench tune`: launch configurations for a table, checked against the fp64 oracle before one is admitted."""
