"""`python cli.py` in a checkout that is not installed; the command is `attnbench`."""

import sys

# Last on the path: the signposts `kernels`, `baselines` and `sweeps` beside this file must hide no package.
sys.path.append(sys.path.pop(0))
from attnbench.cli import main

if __name__ == "__main__":
    main()
