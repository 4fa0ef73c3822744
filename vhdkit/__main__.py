"""python -m vhdkit, and the program of that name."""

import gc
import sys


def entry() -> None:
    """Run the command line; Ctrl-C is already polite while it is still being loaded."""
    # Loading modules makes tens of thousands of objects that stay. Looking for garbage among them every 700 takes a
    # twentieth of a small merge, every 20,000 a fortieth.
    gc.set_threshold(100_000, 20, 20)
    try:
        from vhdkit.cli.main import main  # noqa: PLC0415 - so that loading it is inside the try

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    entry()
