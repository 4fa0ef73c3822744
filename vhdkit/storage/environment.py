"""Defaults that the environment gives where no argument does."""

from __future__ import annotations

import os


def value_of(name: str) -> str:
    """Return the value of a variable, "" if it is not set."""
    return os.environ.get(name, "")
