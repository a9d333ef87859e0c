"""Sequence parallelism: one sequence over many devices, its communication, and how it scales."""
