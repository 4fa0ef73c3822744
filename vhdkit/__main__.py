"""python -m vhdkit."""

from vhdkit.cli.main import main

if __name__ == "__main__":
    main()
