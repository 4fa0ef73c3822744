"""Paths as text, in this machine's writing. Nothing here looks at a file: what exists, a `Folder` tells."""

from os.path import basename, dirname, join, normpath, relpath, sep, splitext

__all__ = ["basename", "dirname", "join", "normpath", "relpath", "sep", "splitext"]
