"""Hand cases to worker processes, write shards, resume."""
