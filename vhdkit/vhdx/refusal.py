"""What is said where a VHDX is to be written. Nothing of the format is loaded for it."""

from __future__ import annotations

from vhdkit.errors import ReadOnlyImageError
from vhdkit.findings import Advice
from vhdkit.storage import paths


def not_written(path: str) -> ReadOnlyImageError:
    """Return the error about a VHDX that is to be written, with what works."""
    made = f"{paths.splitext(path)[0]}.vhd"
    hint = Advice.CONVERT.hint("{} makes a VHD of what it shows", path=path, new_path=made)
    return ReadOnlyImageError("VHDX files are read here, and not written yet", path=path, hint=hint)
