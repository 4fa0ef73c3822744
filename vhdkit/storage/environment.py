"""What the environment says to a program that was not told it otherwise."""

from __future__ import annotations

import os


def value_of(name: str) -> str:
    """Return the value of a variable, "" if it is not set."""
    return os.environ.get(name, "")
