"""What a view holds, in pieces of bounded size, for what reads or copies all of it.

A piece never crosses a multiple of its size, so that a disk of any size takes a fixed amount of memory. What no layer
holds is in no piece; it reads as zeros.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.resolve_layers import resolve, windows
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.holes import without_holes
from vhdkit.disk.read_extents import read_extents
from vhdkit.storage.read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image

PIECE_BYTES = 4 << 20
# Pieces that are read before they are asked for. Two let a slow write be followed by two quick ones.
_AHEAD = 2


def held_pieces(layers: Sequence[Image], size: int, piece_bytes: int, *, with_holes: bool = False) -> Iterator[Extents]:
    """Yield each piece of [0, size) in which layers hold data, from its first byte of data to its last.

    The extents of a piece have no gaps; those of kind ZERO are zeros. Long holes of the files are zeros too, unless
    they are asked for as the data that tables call them.
    """
    for start, stop in windows(layers, 0, size):
        whole = resolve(layers, start, stop)
        found = extents.split(whole if with_holes else without_holes(whole, layers), piece_bytes)
        data = np.flatnonzero(found.kind == Kind.DATA)
        if not len(data):
            continue
        cell = found.start[data] // piece_bytes
        heads = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
        tails = np.append(heads[1:], len(data)) - 1
        for head, tail in zip(data[heads].tolist(), data[tails].tolist(), strict=True):
            yield found.take(np.arange(head, tail + 1))


def _read(layers: Sequence[Image], size: int, piece_bytes: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (offset, bytes) of each piece; the bytes are valid until as many pieces were read as there are buffers."""
    buffers = [np.empty(min(piece_bytes, size), np.uint8) for _ in range(_AHEAD + 2)]
    for number, piece in enumerate(held_pieces(layers, size, piece_bytes)):
        first, last = int(piece.start[0]), int(piece.stop[-1])
        data = buffers[number % len(buffers)][: last - first]
        read_extents(piece, layers, first, data)
        yield first, data


@contextmanager
def read_pieces(
    layers: Sequence[Image], size: int, piece_bytes: int = PIECE_BYTES
) -> Iterator[Iterator[tuple[int, NDArray[np.uint8]]]]:
    """Iterate inside the block over (offset, bytes) of each piece that is held, read ahead.

    The bytes are valid until the next piece is asked for.
    """
    with read_ahead(_read(layers, size, piece_bytes), _AHEAD) as ahead:
        yield ahead
