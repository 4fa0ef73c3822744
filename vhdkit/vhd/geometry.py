"""Cylinders, heads and sectors: what a 1990s BIOS would have been told about a disk.

Information only: the size of a disk is `Footer.current_size`, whatever its geometry says.

**Source**: docs/reference/vhd.md 1.10.
"""

from __future__ import annotations

from typing import NamedTuple

from vhdkit.units import SECTOR

_MAX_SECTORS = 65535 * 16 * 255
_MAX_SECTORS_63 = 65535 * 16 * 63


class Geometry(NamedTuple):
    """A CHS triple."""

    cylinders: int
    heads: int
    sectors_per_track: int

    @property
    def size(self) -> int:
        """Bytes that the triple can address."""
        return self.cylinders * self.heads * self.sectors_per_track * SECTOR

    @classmethod
    def for_size(cls, size: int) -> Geometry:
        """Return the geometry that the specification's algorithm gives a disk of `size` bytes.

        >>> Geometry.for_size(4 << 20)
        Geometry(cylinders=120, heads=4, sectors_per_track=17)
        """
        sectors = min(size // SECTOR, _MAX_SECTORS)
        if sectors >= _MAX_SECTORS_63:
            return cls(sectors // 255 // 16, 16, 255)
        per_track = 17
        tracks = sectors // per_track
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads = 31, 16
            tracks = sectors // per_track
        if tracks >= heads * 1024:
            per_track, heads = 63, 16
            tracks = sectors // per_track
        return cls(tracks // heads, heads, per_track)
