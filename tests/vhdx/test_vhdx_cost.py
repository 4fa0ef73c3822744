"""What a VHDX costs is bounded by what it holds: counted in bytes that are read and kept, not in seconds."""

from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING, Final

import pytest

import vhdkit
from tests import plainvhdx
from tests.counting import CountingFolder
from tests.plainvhdx import BAT_AT, FULL, METADATA_AT, ZERO, Disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB: Final = 1 << 20
TIB: Final = 1 << 40
MOST_KEPT: Final = 16 * MIB


def _read(path: str, folder: CountingFolder) -> None:
    with vhdkit.open_chain(path, folder=folder) as chain:
        for at in (0, chain.size // 2, chain.size - 4096):
            chain.read(at, 4096)


def _extents(path: str, folder: CountingFolder) -> None:
    with vhdkit.open_chain(path, folder=folder) as chain:
        for _ in chain.extents(0, 4 * TIB):
            pass


VERBS: Final[dict[str, Callable[[str, CountingFolder], object]]] = {
    "read": _read,
    "map": _extents,
    "check": lambda path, folder: vhdkit.check(path, deep=True, folder=folder),
}


def largest(path: Path, block_size: int) -> Path:
    """Write a disk of 64 TiB with one block, its table of up to 513 MiB a hole but for two entries."""
    layout = Disk(size=64 * TIB, block_size=block_size)
    count = layout.size // block_size
    entries = count + (count - 1) // layout.ratio
    bat_bytes = -(-entries * 8 // MIB) * MIB
    small = plainvhdx.write(Disk(size=block_size, block_size=block_size))
    table = plainvhdx.region_table(
        [(plainvhdx.BAT_REGION, BAT_AT, bat_bytes, 1), (plainvhdx.METADATA_REGION, METADATA_AT, MIB, 1)]
    )
    with path.open("wb") as file:
        file.write(small[:BAT_AT])
        for at in (192 << 10, 256 << 10):
            file.seek(at)
            file.write(table)
        file.seek(METADATA_AT + (64 << 10) + 8)
        file.write(struct.pack("<Q", layout.size))
        file.seek(BAT_AT)
        file.write(struct.pack("<QQ", BAT_AT + bat_bytes | FULL, ZERO))
        file.truncate(BAT_AT + bat_bytes + block_size)
    return path


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("block_size", [MIB, 256 * MIB])
def test_the_largest_disk_is_read_in_bounded_memory_and_few_bytes(tmp_path: Path, block_size: int, verb: str) -> None:
    path = largest(tmp_path / "d.vhdx", block_size)
    if path.stat().st_blocks * 512 > 64 * MIB:
        pytest.skip("the file system has no holes")
    with vhdkit.open_chain(path) as warm:
        warm.read(0, 512)
    folder = CountingFolder()
    tracemalloc.start()
    try:
        VERBS[verb](str(path), folder)
        kept = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept < MOST_KEPT
    # Of the table what is no hole, in strides; not the 513 MiB.
    assert folder.calls["bytes"] < 40 * MIB


def test_opening_reads_tables_of_fixed_length_alone(tmp_path: Path) -> None:
    path = largest(tmp_path / "d.vhdx", MIB)
    folder = CountingFolder()
    vhdkit.open_chain(path, folder=folder).close()
    assert folder.calls["bytes"] < 256 << 10
    assert folder.calls["opens"] == 1


def test_a_chain_of_64_layers_reads_each_file_once(tmp_path: Path) -> None:
    for number in range(64):
        texts = plainvhdx.linked(bytes([number]) * 16, relative=f".\\{number - 1}.avhdx") if number else None
        disk = Disk(size=64 * MIB, data_id=bytes([number + 1]) * 16, texts=texts)
        (tmp_path / f"{number}.avhdx").write_bytes(plainvhdx.write(disk))
    folder = CountingFolder()
    with vhdkit.open_chain(tmp_path / "63.avhdx", folder=folder) as chain:
        assert len(chain.layers) == 64
    assert folder.calls["opens"] == 64
    assert folder.calls["bytes"] < 64 * (512 << 10)
