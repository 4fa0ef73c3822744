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
from vhdkit.chain.copy_view import copy_view
from vhdkit.chain.held_pieces import PIECE_BYTES, read_pieces
from vhdkit.disk import extents, timestamp
from vhdkit.disk.extents import Kind
from vhdkit.disk.file_name import FileFormat, new_image_file
from vhdkit.errors import Cancelled
from vhdkit.formats import block_size_as_vhd, check_sectors_as_vhd
from vhdkit.options import ParentPolicy
from vhdkit.progress import Reporter
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text
from vhdkit.vhd.create import new_footer
from vhdkit.vhd.dynamic_file import DynamicFile, check_block_count, file_size_of
from vhdkit.vhd.footer import DiskType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vhdkit.options import OutputFormat
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


@checked
def convert(
    source: StrPath,
    destination: StrPath,
    *,
    output_format: OutputFormat = "dynamic",
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    stamp: int | None = None,
    unique_id: bytes | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> int:
    """Write what `source` shows through its chain to a new file: "raw", "fixed" or "dynamic"; return its size.

    `progress` is called with how much of the disk is done, and `cancel` (a `threading.Event`) stops the work; the other
    arguments are as in `open_chain`.

    Raises:
        ValueError: another format is asked for.
        FileNameError: the destination's suffix is that of another format: `.img` and `.raw` need "raw".
        FileExistsError: the destination exists; it is never replaced.
        Cancelled: it was stopped. The new file is gone again.
        VhdError, OSError: from the chain or the new file, which then is gone again.

    """
    if output_format not in {"raw", "fixed", "dynamic"}:
        raise ValueError(f"the format is {output_format!r}: expected raw, fixed or dynamic")
    place, destination = folder or LocalFolder(), as_text(destination)
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    with open_chain_with(as_text(source), policy, place, lock=lock) as chain:
        reporter = Reporter(chain.size, 0, progress, cancel, cancelled=Cancelled("the conversion was cancelled"))
        if output_format == "dynamic":
            block_size = block_size_as_vhd(chain.leaf)
            return write_dynamic(chain, place, destination, block_size, stamp, unique_id, looked=reporter.reach)
        file_format = FileFormat.RAW
        if output_format == "fixed":
            check_sectors_as_vhd(chain.leaf)
            file_format = FileFormat.VHD
        with new_image_file(place, destination, file_format) as storage:
            # The lock keeps `remove_partial_files` from taking it for what a killed run has left.
            storage.lock(exclusive=True)
            storage.truncate(chain.size)
            copy_view(chain.layers, chain.size, storage, _AsOnDisk(), reporter.reach)
            if output_format == "fixed":
                stamp = timestamp.from_unix(time.time()) if stamp is None else stamp
                footer = new_footer(DiskType.FIXED, chain.size, stamp=stamp, unique_id=unique_id)
                storage.write_at(chain.size, footer.to_bytes())
            reporter.reach(chain.size)
            return storage.size()


def write_stream(
    chain: Chain,
    write: Callable[[memoryview], object],
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
) -> None:
    """Hand every byte of the chain's view to `write`, in order and zeros included, in pieces of up to 4 MiB.

    Raises:
        Cancelled: it was stopped.

    """
    reporter = Reporter(chain.size, 0, progress, cancel, cancelled=Cancelled("the conversion was cancelled"))
    zeros = memoryview(bytes(PIECE_BYTES))
    done = 0

    def put(data: memoryview) -> None:
        nonlocal done
        write(data)
        done += len(data)
        reporter.reach(done)

    with read_pieces(chain.layers, chain.size) as pieces:
        for start, data in pieces:
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
    return file_size_of(chain.size, block_size, len(blocks)), blocks, payload


def write_dynamic(
    chain: Chain,
    folder: Folder,
    path: str,
    block_size: int,
    stamp: int | None = None,
    unique_id: bytes | None = None,
    *,
    looked: Callable[[int], None] = lambda _done: None,
    copied: Callable[[int], None] | None = None,
) -> int:
    """Write the chain's view as a new dynamic image and return the file's size.

    `looked` is called with how much of the disk was looked at, `copied` with how many bytes of data were copied since
    it was called before; `dynamic_layout` returns their sum. Both may raise to stop the work. Blocks that hold nothing
    but zeros are left out, unless there is `copied`: then every block of the layout gets its room.
    """
    stamp = timestamp.from_unix(time.time()) if stamp is None else stamp
    footer = new_footer(DiskType.DYNAMIC, chain.size, stamp=stamp, unique_id=unique_id)
    check_block_count(chain.size, block_size, chain.path)
    with new_image_file(folder, path, FileFormat.VHD) as storage:
        storage.lock(exclusive=True)
        file = DynamicFile(storage, footer, block_size, path=path, piece_bytes=PIECE_BYTES)
        copy_view(chain.layers, chain.size, storage, file, looked, copied)
        looked(chain.size)
        file.write_structures()
        return storage.size()


class _AsOnDisk:
    """The places of a raw or fixed image: the file is the disk."""

    piece_bytes = PIECE_BYTES
    end = 0  # it has its length from the beginning

    def offsets(self, start: NDArray[np.int64]) -> NDArray[np.int64]:
        return start
