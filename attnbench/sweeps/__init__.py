"""Named grids of cases: presets as TOML files, and what turns one into cases.

loader.py                        from a name and the command line to a sweep; its head describes the format
files.py, tables.py, values.py   the file and the lines of its keys; which keys there are; sizes and names as written
layers.py                        the command line's layer, and one layer over another
axes.py, sweep.py, defaults.py   what varies, and the cases that it makes; the sweep; what mechanisms have by themselves
"""
