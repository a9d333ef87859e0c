"""`python -m attnbench`: the command line without installing the package."""

from attnbench.cli import main

if __name__ == "__main__":
    main()
