"""The layers of a merge: which of a chain are merged, into which, and what lies below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.disk_view import DiskView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image


@dataclass(frozen=True, slots=True)
class MergedLayers:
    """The layers of a chain, leaf first; those above `depth` are merged into the one there."""

    layers: Sequence[Image]
    depth: int

    @property
    def sources(self) -> Sequence[Image]:
        """The layers that are merged, leaf first."""
        return self.layers[: self.depth]

    @property
    def destination(self) -> Image:
        """The layer that they are merged into."""
        return self.layers[self.depth]

    @property
    def family(self) -> Sequence[Image]:
        """The sources and the destination."""
        return self.layers[: self.depth + 1]

    @property
    def remaining(self) -> Sequence[Image]:
        """The layers that stay: the destination, and those below it."""
        return self.layers[self.depth :]

    @property
    def path(self) -> str:
        """The leaf's path."""
        return self.layers[0].path

    @property
    def size(self) -> int:
        """The size of the leaf's disk in bytes."""
        return self.layers[0].size

    def view(self) -> DiskView:
        """Return the disk as the leaf shows it."""
        return DiskView(self.layers)

    def destination_view(self) -> DiskView:
        """Return the disk as the destination shows it."""
        return DiskView(self.remaining)
