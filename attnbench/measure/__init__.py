"""The only place that times, counts memory, reads clocks and checks accuracy; and the worker process that does it."""
