"""Small chains for the tests of programs that read them, and what each shows.

    from vhdkit import open_chain, testing

    contents = [{0: b"written first"}, {4096: b"written after a snapshot"}]
    paths = testing.make_chain("vms", contents)             # leaf first
    with open_chain(paths[0]) as chain:
        assert chain.read(0, chain.size) == testing.expected_view(contents)

With `folder=testing.MemoryFolder()` nothing reaches a disk.

**Source**: docs/how-to/testing.md.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.units import KiB, MiB, as_text
from vhdkit.vhd.create import create_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.options import DiskTypeName
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

__all__ = ["MemoryFolder", "expected_view", "make_chain"]

DISK_SIZE = 4 * MiB
# Small enough that a few sectors are many blocks.
BLOCK_SIZE = 64 * KiB


def make_chain(
    directory: StrPath,
    contents: Sequence[Mapping[int, bytes]],
    *,
    size: int = DISK_SIZE,
    block_size: int = BLOCK_SIZE,
    disk_type: DiskTypeName = "dynamic",
    name: str = "disk",
    folder: Folder | None = None,
) -> tuple[str, ...]:
    """Write a chain into a directory that exists, and return its paths, leaf first.

    `contents` has a mapping for each layer, base first: the bytes to write, by their offset in the disk. `size` and
    `block_size` are in bytes; `disk_type` is that of the base, "fixed" or "dynamic". The base is called `NAME.vhd`, the
    layers over it `NAME_1.avhd` and so on. Ids depend on names and contents alone.

    Raises:
        ValueError: there is no layer, or bytes lie outside of the disk.
        FileExistsError: one of the names is taken.

    """
    if not contents:
        raise ValueError("a chain has one layer at least")
    place = folder or LocalFolder()
    made: list[str] = []
    for depth, content in enumerate(contents):
        path = paths.join(as_text(directory), f"{name}_{depth}.avhd" if depth else f"{name}.vhd")
        unique_id = sha256(repr((name, depth, sorted(content.items()))).encode()).digest()[:16]
        if made:
            create_image(path, parent=made[0], block_size=block_size, unique_id=unique_id, folder=place)
        else:
            blocks = block_size if disk_type == "dynamic" else None
            create_image(path, size=size, disk_type=disk_type, block_size=blocks, unique_id=unique_id, folder=place)
        made.insert(0, path)
        with open_chain(path, writable=True, folder=place) as chain:
            for offset, data in content.items():
                chain.write(offset, data)
            chain.sync()
    return tuple(made)


def expected_view(contents: Sequence[Mapping[int, bytes]], *, size: int = DISK_SIZE) -> bytes:
    """Return the bytes of the disk that the leaf of `make_chain(..., contents)` shows.

    >>> expected_view([{0: b"base"}, {2: b"XX"}], size=6)
    b'baXX\\x00\\x00'
    """
    disk = bytearray(size)
    for content in contents:
        for offset, data in content.items():
            disk[offset : offset + len(data)] = data
    return bytes(disk)
