"""An image of a format unlike the VHD fits what is above the formats.

Its bitmaps lie in a place of their own with the least significant bit first, its sectors have 4096 bytes, and some of
its blocks are whole without a bitmap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from vhdkit.chain.disk_view import DiskView
from vhdkit.corruption import Corruption
from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Kind
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import DiskKind, Image
from vhdkit.disk.ownership import Ownership
from vhdkit.disk.parent_link import ParentLink
from vhdkit.disk.raw_image import RawImage
from vhdkit.disk.sector_bitmap import BitOrder
from vhdkit.errors import CorruptImageError, ReadOnlyImageError
from vhdkit.formats import as_writable
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.storage.protocols import Storage

SECTOR, SECTORS_PER_BLOCK, BLOCKS = 4096, 24, 9
BLOCK = SECTOR * SECTORS_PER_BLOCK
SIZE = BLOCK * BLOCKS
WHOLE = np.full(4, 0xFF, np.uint8)


class OtherImage(FileImage):
    """A read-only image: `places` says where a block's payload lies, `bits` which of its sectors it has."""

    def __init__(self, storage: Storage, places: dict[int, int], bits: dict[int, NDArray[np.uint8]]) -> None:
        super().__init__(storage, SIZE, DiskKind.DIFFERENCING)
        self.logical_sector_size, self.block_size = SECTOR, BLOCK
        self.unique_id, self.parent = bytes(range(16)), ParentLink()
        self._places, self._bits = places, bits

    def allocated_blocks(self, offset: int, stop: int) -> NDArray[np.int64]:
        inside = range(offset // BLOCK, -(-stop // BLOCK))
        return np.array([block for block in inside if block in self._places], np.int64)

    def ownership(self, offset: int, stop: int) -> Ownership:
        blocks = self.allocated_blocks(offset, stop)
        rows = [self._bits.get(block, WHOLE) for block in blocks.tolist()]
        bitmaps = np.array(rows, np.uint8).reshape(len(blocks), len(WHOLE))
        at = np.array([self._places[block] for block in blocks.tolist()], np.int64)
        return Ownership(blocks, bitmaps, at, BitOrder.LSB_FIRST)

    def resolve(self, offset: int, length: int) -> Extents:
        own = self.ownership(offset, offset + length)
        row, start, stop = sector_bitmap.runs(own.bitmaps, SECTORS_PER_BLOCK, own.order)
        base, at = own.blocks[row] * BLOCK, own.payload_offsets[row]
        first, last = base + start * SECTOR, base + stop * SECTOR
        return extents.filled(first, last, at + start * SECTOR, offset, offset + length, Kind.PARENT)

    def mapped_sectors(self, offset: int, stop: int) -> int:
        return len(self.allocated_blocks(offset, stop)) * SECTORS_PER_BLOCK

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        detail = f"{len(rest)} bytes are missing"
        raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=self.path, offset=offset)


def chain_of(depth: int, seed: int) -> tuple[list[Image], bytes]:
    """Return layers, leaf first, over a raw file, and what they show, by a loop over sectors."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, SIZE, np.uint8)
    files, shown, layers = {"/base.raw": base.tobytes()}, base.copy(), list[Image]()
    made = []
    for number in range(depth):
        held = [block for block in range(BLOCKS) if rng.random() < 0.6]
        payload = rng.integers(0, 256, (len(held), BLOCK), np.uint8)
        bits = {block: rng.integers(0, 256, 4).astype(np.uint8) for block in held if rng.random() < 0.8}
        for row, block in enumerate(held):
            for sector in range(SECTORS_PER_BLOCK):
                if block not in bits or bits[block][sector // 8] >> sector % 8 & 1:
                    at = sector * SECTOR
                    shown[block * BLOCK + at : block * BLOCK + at + SECTOR] = payload[row, at : at + SECTOR]
        path = f"/{number}.other"
        files[path] = bytes(8192) + payload.tobytes()
        made.append((path, {block: 8192 + row * BLOCK for row, block in enumerate(held)}, bits))
    folder = MemoryFolder(files)
    layers = [OtherImage(folder.open(path), places, bits) for path, places, bits in reversed(made)]
    return [*layers, RawImage(folder.open("/base.raw"))], shown.tobytes()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_chain_of_another_format_reads_as_its_bits_say(depth: int, seed: int) -> None:
    layers, expected = chain_of(depth, seed)
    view = DiskView(layers)
    rng = np.random.default_rng(seed)
    assert view.read(0, SIZE) == expected
    for start, stop in np.sort(rng.integers(0, SIZE, (50, 2)), axis=1).tolist():
        assert view.read(start, stop - start) == expected[start:stop]
    for layer in layers:
        layer.close()


def test_an_image_of_another_format_is_an_image_and_is_not_written() -> None:
    layers, _ = chain_of(1, 0)
    for layer in layers:
        assert isinstance(layer, Image)
        with pytest.raises(ReadOnlyImageError, match="are not written"):
            as_writable(layer)
        layer.close()
