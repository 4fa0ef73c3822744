"""python -m vhdkit, and the program of that name."""

import sys


def entry() -> None:
    """Run the command line; Ctrl-C is already polite while it is still being loaded."""
    try:
        from vhdkit.cli.main import main  # noqa: PLC0415 - so that loading it is inside the try

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    entry()
