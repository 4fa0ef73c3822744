"""The digest of a view: what a disk reads as, whatever its layers look like.

Pieces of 1 MiB that no layer holds, or that are all zeros, count as nothing; the others by place and content. So two
chains that read the same have the same digest, and its cost follows the data.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from vhdkit.chain.disk_view import DiskView
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhdkit.disk.image import Image

_PIECE = 1 << 20


def view_digest(layers: Sequence[Image], check: Callable[[], None] = lambda: None) -> str:
    """Return the digest of what is read through layers, leaf first; `check` is called between the pieces."""
    chain = DiskView(layers)
    total = sha256(chain.size.to_bytes(8))
    last = -1
    for window in chain.extents():
        pieces = extents.split(window.of(Kind.DATA), _PIECE)
        for piece in extents.distinct(pieces.start // _PIECE).tolist():
            # A window's edge may lie within a piece, which is then met twice.
            if piece <= last:
                continue
            last = piece
            check()
            content = chain.read(piece * _PIECE, _PIECE)
            if content.count(0) < len(content):
                total.update(piece.to_bytes(8))
                total.update(content)
    return total.hexdigest()
