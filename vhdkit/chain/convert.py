"""Writing a disk's view into a new file: raw, fixed, or dynamic.

Holes stay holes: a raw or fixed file is sparse where the chain holds nothing, and a dynamic one has no block there.
`convert` also leaves out what is held but zero. The new file gets its name when it is whole and durable.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.chain import Chain, open_chain_with
from vhdkit.chain.parent_search import ParentSearch
from vhdkit.chain.resolve import resolve, windows
from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Kind
from vhdkit.disk.holes import without_holes
from vhdkit.disk.raw_image import RawImage
from vhdkit.disk.read_extents import read_extents
from vhdkit.errors import VhdError
from vhdkit.options import ParentPolicy
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import SECTOR, as_text
from vhdkit.vhd import bat, constants, timestamp
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.create import TABLE_OFFSET, new_footer, new_image_file, table_end_for
from vhdkit.vhd.file_name import FileFormat
from vhdkit.vhd.footer import DiskType
from vhdkit.vhd.header import DynamicHeader
from vhdkit.vhd.image import Placement, VhdImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath

_PAGE = 4096
_PIECE = 4 << 20
_TABLE_SLICE = 65536


@checked
def convert(
    source: StrPath,
    destination: StrPath,
    *,
    output_format: str = "dynamic",
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    stamp: int | None = None,
    unique_id: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> int:
    """Write what `source` shows through its chain to a new file: "raw", "fixed" or "dynamic"; return its size.

    `progress` is called with (bytes done, bytes to look at); the other arguments are as in `open_chain`.

    Raises:
        ValueError: another format is asked for.
        FileNameError: the destination's suffix is that of another format: `.img` and `.raw` need "raw".
        FileExistsError: the destination exists; it is never replaced.
        VhdError, OSError: from the chain or the new file, which then is gone again.

    """
    if output_format not in {"raw", "fixed", "dynamic"}:
        raise ValueError(f"the format is {output_format!r}: expected raw, fixed or dynamic")
    place, destination = folder or LocalFolder(), as_text(destination)
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    with open_chain_with(as_text(source), ParentSearch(folder=place, policy=policy, lock=lock)) as chain:
        if output_format == "dynamic":
            leaf = chain.leaf
            block_size = (leaf.block_size if isinstance(leaf, VhdImage) else 0) or constants.DEFAULT_BLOCK_SIZE
            return write_dynamic(
                chain, place, destination, block_size, stamp, unique_id, progress=progress, skip_zeros=True
            )
        file_format = FileFormat.RAW if output_format == "raw" else FileFormat.VHD
        with new_image_file(place, destination, file_format) as storage:
            storage.truncate(chain.size)
            for start, data in _pieces(chain, progress):
                _write_nonzero(storage, start, data)
            if output_format == "fixed":
                stamp = timestamp.from_unix(time.time()) if stamp is None else stamp
                footer = new_footer(DiskType.FIXED, chain.size, stamp=stamp, unique_id=unique_id)
                storage.write_at(chain.size, footer.to_bytes())
            return storage.size()


def write_stream(
    chain: Chain, write: Callable[[memoryview], object], *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Hand every byte of the chain's view to `write`, in order and zeros included, in pieces of up to 4 MiB.

    `progress` is called with (bytes written, bytes of the disk).
    """
    zeros = memoryview(bytes(_PIECE))
    done = 0

    def put(data: memoryview) -> None:
        nonlocal done
        write(data)
        done += len(data)
        if progress is not None:
            progress(done, chain.size)

    for start, data in _pieces(chain, None):
        while done < start:
            put(zeros[: start - done])
        put(data.data)
    while done < chain.size:
        put(zeros[: chain.size - done])


def dynamic_layout(chain: Chain, block_size: int) -> tuple[int, NDArray[np.uint32], int]:
    """Return what a dynamic image of the chain takes: bytes of the file, its blocks (uint32), bytes of data held."""
    touched, payload, last = [np.empty(0, np.uint32)], 0, -1
    for window in chain.extents():
        data = window.of(Kind.DATA)
        payload += data.total
        found = extents.distinct(extents.split(data, block_size).start // block_size)
        # A block that the window's edge cuts is met twice.
        found = found[found > last]
        if len(found):
            last = int(found[-1])
            touched.append(found.astype(np.uint32))
    blocks = np.concatenate(touched)
    place = Placement.behind(table_end_for(-(-chain.size // block_size)), block_size)
    end = place.at(len(blocks)) if len(blocks) else table_end_for(-(-chain.size // block_size))
    return end + FOOTER_SIZE, blocks, payload


def write_dynamic(
    chain: Chain,
    folder: Folder,
    path: str,
    block_size: int,
    stamp: int | None = None,
    unique_id: bytes | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    copied: Callable[[int], None] | None = None,
    skip_zeros: bool = False,
) -> int:
    """Write the chain's view as a new dynamic image and return the file's size.

    `progress` is called with (bytes done, bytes to look at), `copied` with how many bytes of data were copied since it
    was called before: of all of them `dynamic_layout` tells. With `skip_zeros` blocks that hold nothing but zeros are
    left out.
    """
    stamp = timestamp.from_unix(time.time()) if stamp is None else stamp
    footer = new_footer(DiskType.DYNAMIC, chain.size, stamp=stamp, unique_id=unique_id)
    entries = np.full(-(-chain.size // block_size), bat.UNALLOCATED, np.uint32)
    if len(entries) > constants.MAX_TABLE_ENTRIES:
        raise VhdError(f"{len(entries)} blocks of {block_size} bytes are too many", path=chain.path)
    header = DynamicHeader(table_offset=TABLE_OFFSET, max_table_entries=len(entries), block_size=block_size)
    place = Placement.behind(table_end_for(-(-chain.size // block_size)), block_size)
    bitmap_size = sector_bitmap.bitmap_size(block_size)
    ones = sector_bitmap.full(block_size).tobytes()
    used = 0
    with new_image_file(folder, path, FileFormat.VHD) as storage:
        storage.truncate(place.first)
        for start, data in _pieces(chain, progress, copied):
            block = start // block_size
            if skip_zeros and entries[block] == bat.UNALLOCATED and not data.any():
                continue
            if entries[block] == bat.UNALLOCATED:
                at = place.at(used)
                if at // SECTOR >= bat.UNALLOCATED:
                    raise VhdError("the file would pass 2 TiB, which a BAT cannot address", path=path)
                storage.truncate(at + bitmap_size + block_size)
                storage.write_at(at, ones)
                entries[block] = at // SECTOR
                used += 1
            _write_nonzero(storage, int(entries[block]) * SECTOR + bitmap_size + start % block_size, data)
        end = place.at(used) if used else table_end_for(-(-chain.size // block_size))
        storage.truncate(end)
        storage.write_at(0, footer.to_bytes())
        storage.write_at(FOOTER_SIZE, header.to_bytes())
        for first in range(0, len(entries), _TABLE_SLICE):
            storage.write_at(TABLE_OFFSET + first * 4, bat.to_bytes(entries[first : first + _TABLE_SLICE]))
        padding = TABLE_OFFSET + -(-len(entries) // bat.ENTRIES_PER_SECTOR) * SECTOR
        storage.write_at(padding, b"\xff" * (table_end_for(-(-chain.size // block_size)) - padding))
        storage.write_at(end, footer.to_bytes())
        return storage.size()


def _pieces(
    chain: Chain, progress: Callable[[int, int], None] | None, copied: Callable[[int], None] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (offset, bytes) of everything that some layer holds, cut at multiples of a piece or a block.

    Holes of the files are left out, unless `copied` counts what `dynamic_layout` has counted.
    """
    block_size = chain.leaf.block_size if isinstance(chain.leaf, VhdImage) else 0
    size = min(_PIECE, block_size or constants.DEFAULT_BLOCK_SIZE)
    buffer = np.empty(size, np.uint8)
    for start, stop in windows(chain.layers, 0, chain.size):
        found = resolve(chain.layers, start, stop)
        pieces = extents.split(without_holes(found, chain.layers) if copied is None else found, size)
        pieces = pieces.take(np.isin(pieces.start // size, pieces.of(Kind.DATA).start // size))
        cells, heads = np.unique(pieces.start // size, return_index=True)
        tails = np.append(heads, len(pieces))[1:]
        for cell, head, tail in zip(cells.tolist(), heads.tolist(), tails.tolist(), strict=True):
            part = pieces.take(np.arange(head, tail))
            first, last = int(part.start[0]), int(part.stop[-1])
            out = buffer[: last - first]
            read_extents(part, chain.layers, first, out)
            yield first, out
            if copied is not None:
                copied(part.of(Kind.DATA).total)
            if progress is not None:
                progress(cell * size, chain.size)
        if progress is not None:
            progress(stop, chain.size)


def _write_nonzero(storage: Storage, offset: int, data: NDArray[np.uint8]) -> None:
    """Write what is not zero, in pages, into a file that reads as zeros there."""
    whole = len(data) // _PAGE * _PAGE
    used = data[:whole].reshape(-1, _PAGE).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], used, [False])).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        storage.write_at(offset + start * _PAGE, data[start * _PAGE : stop * _PAGE].data)
    if data[whole:].any():
        storage.write_at(offset + whole, data[whole:].data)


def open_raw(path: str, folder: Folder, *, lock: bool = True) -> Chain:
    """Open a file as nothing but a disk's content, and hold it for reading."""
    storage = folder.open(folder.real(path))
    try:
        if lock:
            storage.lock(exclusive=False)
        return Chain([RawImage(storage)])
    except BaseException:
        storage.close()
        raise
