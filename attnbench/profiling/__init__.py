"""Where the time of one mechanism goes: kernels, gaps, ceilings, counters, and a diagnosis in words."""
