"""Python loads this when it starts with this folder on its path: fast paths are off here too (tests/slowpaths.py)."""

import os

from tests.slowpaths import VARIABLE, turn_off_here

turn_off_here(name for name in os.environ.get(VARIABLE, "").split(",") if name)
