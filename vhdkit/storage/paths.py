"""Paths as text, in this machine's writing. Nothing here looks at a file: what exists, a `Folder` tells."""

from os.path import abspath, basename, dirname, join, normpath, relpath, sep, splitext

__all__ = ["abspath", "basename", "dirname", "join", "normpath", "relpath", "sep", "splitext"]
