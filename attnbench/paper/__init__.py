"""The papers' figures and tables: what they published, as data, beside what is measured here.

data/*.toml (+ .csv) -> figures.py, published.py -> lines.py   what was published
runs and records     -> measured.py -> lines.py                what was measured, in the same form
lines -> claims.py -> deviations.py                            which statements hold here, in words
lines -> sheet.py -> {curve_panels.py, dot_panels.py} -> drawing.py  published points hollow, measured points solid
sources.py, whole_models.py     sweeps and models measured within a budget, or runs that are there
command.py, page.py, tables.py, details.py, telling.py         a figure with its page; all of them with a summary
"""
