"""`python -m cookbook`: the command line without the entry point."""

from cookbook.cli import main

if __name__ == "__main__":
    main()
