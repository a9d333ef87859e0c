"""The report: one self-contained HTML file of a run, and of its comparison with another."""
