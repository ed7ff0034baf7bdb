"""`python -m api.cli` is `overread`."""

from api.cli import main

if __name__ == "__main__":
    main()
