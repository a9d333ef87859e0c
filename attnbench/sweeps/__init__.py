"""Named grids of cases: presets as TOML files, and the loader that turns one into cases."""
