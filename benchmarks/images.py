"""Workloads as files: VHD chains, raw disks under qcow2 overlays, and bare payload; restored in place, and judged.

Nothing here is written or read through the programs that race, but for the headers of the VHD files, which vhdkit
makes. A restore writes again only what a merge may have changed, so that a run begins as the one before did: the same
files, at the same place on the disk, read once.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import vhdkit
from benchmarks.workloads import BLOCK, SECTOR, SECTORS, STALE, Workload
from vhdkit.vhd.sparse_image import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_BITMAP = SECTORS // 8
_TABLE = 1536
# Of qemu's own choice, and the one whose 32 parts are a sector each.
_CLUSTER, _EXACT_CLUSTER = 64 << 10, 16 << 10
_EXTENDED_ENTRIES = 1 << 4
_COPIED = np.uint64(1 << 63)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


class WrongBytesError(AssertionError):
    """A merged disk does not read as the leaf did."""


class Inputs(ABC):
    """The files of one workload in one folder, as one kind of tool takes them."""

    def __init__(self, workload: Workload, folder: str) -> None:
        self.workload = workload
        self.folder = folder
        self.paths = [os.path.join(folder, name) for name in self._names()]
        os.makedirs(folder, exist_ok=True)

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def restore(self, *, thorough: bool = False) -> None:
        """Make the files what they were before a merge, writing as little as that takes, or with `thorough` all."""

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read_once(self) -> None:
        """Sync the files, and read them into the page cache."""
        buffer = bytearray(8 << 20)
        for name in sorted(os.listdir(self.folder)):
            with open(os.path.join(self.folder, name), "rb", buffering=0) as file:
                os.fsync(file.fileno())
                for start, end in _data_ranges(file.fileno()):
                    file.seek(start)
                    left = end - start
                    while left > 0 and (count := file.readinto(buffer)):
                        left -= count


def _data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a file that are no holes: a disk of 2040 GiB is hardly anything else."""
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # nothing but hole from here on
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _write(descriptor: int, at: int, *parts: bytes | memoryview) -> None:
    length = sum(len(part) for part in parts)
    if os.pwritev(descriptor, parts, at) != length:
        raise OSError("a short write")


def _punch(descriptor: int, at: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
    if libc.fallocate(ctypes.c_int(descriptor), flags, ctypes.c_int64(at), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "no hole could be made")


class VhdChain(Inputs):
    """A dynamic base and its differencing children, blocks placed as vhdkit places them if the workload is aligned."""

    def __init__(self, workload: Workload, folder: str) -> None:
        super().__init__(workload, folder)
        self._heads: dict[int, bytes] = {}
        self._places: dict[int, Placement] = {}

    def _names(self) -> list[str]:
        return ["base.vhd", *(f"level{layer.number:02}.avhd" for layer in self.workload.layers[1:])]

    def restore(self, *, thorough: bool = False) -> None:
        """Write missing layers whole; of the others what lies on blocks that layers above hold, heads and ends.

        The marks of ended views go, which a merge that keeps its sources has left: every layer shows its own again.
        """
        for path in self.paths:
            Path(f"{path}.vhdkit-ended").unlink(missing_ok=True)
        for layer in self.workload.layers:
            number, path = layer.number, self.paths[layer.number]
            whole = number not in self._heads
            if whole:
                self._create(number)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._fill(descriptor, number, whole=whole or thorough or not os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)

    def _create(self, number: int) -> None:
        """Let vhdkit make the empty image, and keep its first bytes for restores to come."""
        path = self.paths[number]
        if os.path.lexists(path):
            os.unlink(path)
        vhdkit.create_image(
            path,
            size=self.workload.size,
            parent=self.paths[number - 1] if number else None,
            unique_id=_unique_id(number),
            stamp=800_000_000,
        )
        with open(path, "rb") as file:
            head = file.read()[:-SECTOR]
        blocks = self.workload.layers[number].blocks
        place = Placement.behind(len(head), BLOCK)
        if not self.workload.aligned:
            place = Placement(len(head), _BITMAP + BLOCK)
        table = np.full(self.workload.size // BLOCK, 0xFFFF_FFFF, ">u4")
        table[blocks] = place.offsets(np.arange(len(blocks))) // SECTOR
        head = head[:_TABLE] + table.tobytes() + head[_TABLE + table.nbytes :]
        # Up to the first block, so that nothing stays of the empty image's footer.
        self._heads[number] = head.ljust(place.first, b"\0")
        self._places[number] = place

    def _fill(self, descriptor: int, number: int, *, whole: bool) -> None:
        layer, head, place = self.workload.layers[number], self._heads[number], self._places[number]
        end = place.at(len(layer.blocks))
        os.ftruncate(descriptor, end + SECTOR)
        above = set[int]().union(*(other.blocks.tolist() for other in self.workload.layers[number + 1 :]))
        for rank, block in enumerate(layer.blocks.tolist()):
            if whole or block in above:
                self._write_block(descriptor, number, block, place.at(rank), layer.held[rank])
        _write(descriptor, 0, head)
        _write(descriptor, end, head[:SECTOR])

    def _write_block(self, descriptor: int, number: int, block: int, at: int, held: NDArray[np.bool_]) -> None:
        words = self.workload.written(number, block)
        # Blocks are written whole, as the systems that make them do, and what a bitmap does not speak for is marked: it
        # must not come through a merge. With holes or unwritten space between its runs a child is in 100,000 pieces,
        # and freeing those took ten times as long as merging them.
        words[~held, 1] = STALE
        _write(descriptor, at, np.packbits(held, bitorder="big").tobytes(), words.data.cast("B"))


def _unique_id(number: int) -> bytes:
    """Return an id that is a random UUID's by its marks, in either byte order: some readers refuse others."""
    mark = bytes([0x40 + number])
    return mark * 8 + bytes([0x80 + number]) + mark * 7


def check_vhd(workload: Workload, path: str) -> None:
    """Compare a merged dynamic image with what the leaf read, bits of its bitmaps included.

    Raises:
        WrongBytesError: a sector differs, or a bitmap lacks the bit of one that was written.

    """
    with open(path, "rb", buffering=0) as file:
        raw = file.read(_TABLE)
        table_at, _, entries, block_size = struct.unpack(">QIII", raw[528:548])
        file.seek(table_at)
        table = np.frombuffer(_read_all(file.fileno(), table_at, entries * 4), ">u4")
        if block_size != BLOCK or entries < workload.size // BLOCK:
            raise WrongBytesError(f"{path}: {entries} blocks of {block_size} bytes")
        expected = set(workload.blocks())
        for block in np.flatnonzero(table != 0xFFFF_FFFF).tolist():
            at = int(table[block]) * SECTOR
            bitmap = np.frombuffer(_read_all(file.fileno(), at, _BITMAP), np.uint8)
            view = workload.view(block)
            _compare(path, block, _read_all(file.fileno(), at + _BITMAP, BLOCK), view)
            if (~np.unpackbits(bitmap, bitorder="big").astype(np.bool_) & view.any(axis=1)).any():
                raise WrongBytesError(f"{path}: block {block} lacks bits of sectors that it holds")
            expected.discard(block)
        if expected:
            raise WrongBytesError(f"{path}: block {min(expected)} is missing, of {len(expected)}")


def check_raw(workload: Workload, path: str) -> None:
    """The same for a raw disk; holes are taken for the zeros that they read as."""
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != workload.size:
            raise WrongBytesError(f"{path}: the size is {os.fstat(file.fileno()).st_size}")
        blocks = set(workload.blocks())
        for start, end in _data_ranges(file.fileno()):
            blocks.update(range(start // BLOCK, -(-end // BLOCK)))
        for block in sorted(blocks):
            _compare(path, block, _read_all(file.fileno(), block * BLOCK, BLOCK), workload.view(block))


def _read_all(descriptor: int, at: int, length: int) -> bytes:
    data = os.pread(descriptor, length, at)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), at + len(data))):
        data += more
    return data


def _compare(path: str, block: int, data: bytes, view: NDArray[np.uint64]) -> None:
    if data == view.data.cast("B"):
        return
    words = np.frombuffer(data.ljust(BLOCK, b"\0"), np.uint64).reshape(view.shape)
    sector = int(np.flatnonzero((words != view).any(axis=1))[0])
    found, wanted = words[sector, :2].tolist(), view[sector, :2].tolist()
    raise WrongBytesError(f"{path}: block {block}, sector {sector}: found {found}, expected {wanted}")


class Qcow2Chain(Inputs):
    """A raw base under qcow2 overlays, whose clusters are of 64 KiB as `qemu-img create -b` makes them.

    A cluster of which a guest writes a sector is filled up from below, so overlays hold whole clusters; `exact` ones,
    made with extended_l2=on,cluster_size=16k, hold the workload's sectors and no others.
    """

    def __init__(self, workload: Workload, folder: str, *, exact: bool = False) -> None:
        super().__init__(workload, folder)
        self._made = False
        self._exact = exact
        self._cluster = _EXACT_CLUSTER if exact else _CLUSTER

    def _names(self) -> list[str]:
        return ["base.raw", *(f"level{layer.number:02}.qcow2" for layer in self.workload.layers[1:])]

    def restore(self, *, thorough: bool = False) -> None:
        """Write the base's blocks that layers above hold (all of them the first time), and every overlay."""
        self._made = self._made and not thorough
        descriptor = os.open(self.paths[0], os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._restore_base(descriptor)
        finally:
            os.close(descriptor)
        for number in range(1, len(self.paths)):
            descriptor = os.open(self.paths[number], os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._write_overlay(descriptor, number)
            finally:
                os.close(descriptor)
        self._made = True

    def _restore_base(self, descriptor: int) -> None:
        work = self.workload
        os.ftruncate(descriptor, work.size)
        above = set[int]().union(*(layer.blocks.tolist() for layer in work.layers[1:]))
        base = set(work.layers[0].blocks.tolist())
        for block in work.layers[0].blocks.tolist():
            if not self._made or block in above:
                _write(descriptor, block * BLOCK, work.view(block, 0).data.cast("B"))
        for block in sorted(above - base) if self._made else ():
            _punch(descriptor, block * BLOCK, BLOCK)

    def _write_overlay(self, descriptor: int, number: int) -> None:
        layer, cluster = self.workload.layers[number], self._cluster
        per_block = BLOCK // cluster
        held = layer.held.reshape(len(layer.blocks), per_block, cluster // SECTOR)
        clusters = np.any(held, axis=2)
        guest = (layer.blocks[:, None] * per_block + np.arange(per_block))[clusters]
        per_table = cluster // (16 if self._exact else 8)
        tables = np.unique(guest // per_table)
        l1_entries = -(-self.workload.size // (per_table * cluster))
        l1_clusters = -(-l1_entries * 8 // cluster)
        # Header, first-level table, second-level tables, data, and the counts of references behind it all.
        data_at = (1 + l1_clusters + len(tables)) * cluster
        refcounts_at = data_at + len(guest) * cluster
        count_clusters, total = 0, refcounts_at // cluster
        while (need := -(-(total + 1 + count_clusters) // (cluster // 2))) > count_clusters:
            count_clusters = need
        os.ftruncate(descriptor, refcounts_at + (1 + count_clusters) * cluster)
        _write(descriptor, 0, self._header(number, l1_entries, refcounts_at))
        l1 = np.zeros(l1_clusters * cluster // 8, ">u8")
        l1[tables] = (1 + l1_clusters + np.arange(len(tables), dtype=np.uint64)) * np.uint64(cluster) | _COPIED
        l2 = np.zeros((len(tables), per_table, cluster // per_table // 8), ">u8")
        place = np.searchsorted(tables, guest // per_table), guest % per_table
        l2[*place, 0] = np.uint64(data_at) + np.arange(len(guest), dtype=np.uint64) * np.uint64(cluster) | _COPIED
        if self._exact:
            # Bit x, from the lowest on, says that part x is in the overlay.
            l2[*place, 1] = np.packbits(held[clusters], axis=1, bitorder="little").view("<u4")[:, 0]
        _write(descriptor, cluster, l1.tobytes())
        _write(descriptor, (1 + l1_clusters) * cluster, l2.tobytes())
        at = data_at
        for row, block in enumerate(layer.blocks.tolist()):
            data = self._data(number, block, layer.held[row]).reshape(per_block, -1)[clusters[row]]
            _write(descriptor, at, data.data.cast("B"))
            at += data.nbytes
        references = np.zeros(count_clusters * cluster // 2, ">u2")
        references[: total + 1 + count_clusters] = 1
        places = np.zeros(cluster // 8, ">u8")
        places[:count_clusters] = refcounts_at + cluster + np.arange(count_clusters) * cluster
        _write(descriptor, refcounts_at, places.tobytes(), references.tobytes())

    def _data(self, number: int, block: int, held: NDArray[np.bool_]) -> NDArray[np.uint64]:
        if not self._exact:
            return self.workload.view(block, number)
        words = self.workload.written(number, block)
        words[~held, 1] = STALE
        return words

    def _header(self, number: int, l1_entries: int, refcounts_at: int) -> bytes:
        backing = os.path.basename(self.paths[number - 1]).encode()
        bits = self._cluster.bit_length() - 1
        fields = (b"QFI\xfb", 3, 112 + 16, len(backing), bits, self.workload.size, 0, l1_entries, self._cluster)
        features = _EXTENDED_ENTRIES if self._exact else 0
        more = (refcounts_at, 1, 0, 0, features, 0, 0, 4, 112)
        fixed = struct.pack(">4sIQIIQIIQ", *fields) + struct.pack(">QIIQQQQII", *more)
        form = b"raw" if number == 1 else b"qcow2"
        extension = struct.pack(">II", 0xE279_2ACA, len(form)) + form.ljust(8, b"\0")
        return (fixed.ljust(112, b"\0") + extension + backing).ljust(self._cluster, b"\0")


class Payload(Inputs):
    """The bytes of a leaf's sectors alone, in one file: what `cp` copies."""

    def _names(self) -> list[str]:
        return ["payload"]

    def restore(self, *, thorough: bool = False) -> None:
        """Write the payload once; a copy of it is removed."""
        copy = self.paths[0] + ".copy"
        if os.path.exists(copy):
            os.unlink(copy)
        if os.path.exists(self.paths[0]) and not thorough:
            return
        with open(self.paths[0], "wb") as file:
            for layer in self.workload.layers[1:]:
                for block, held in zip(layer.blocks.tolist(), layer.held, strict=True):
                    words = self.workload.written(layer.number, block)
                    file.write((words if held.all() else words[held]).data.cast("B"))
