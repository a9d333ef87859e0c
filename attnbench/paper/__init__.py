"""The papers' figures and tables: what they published, as data, beside what is measured here.

data/*.toml (+ .csv) -> figures.py, published.py -> lines.py   what was published
runs and records     -> measured.py -> lines.py                what was measured, in the same form
lines -> claims.py -> deviations.py                   which statements hold here, in words
lines -> drawing.py                                   published points hollow, measured points solid
sources.py, command.py, page.py                       sweeps within a budget; one figure; all of them on one page
"""
