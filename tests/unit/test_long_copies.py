"""Long copies past the page cache, and extents that are shared: vhdkit/storage/file_copy.py.

What is asked of every storage stands in test_storage.py and test_copying_many.py; here it is held that these ways are
gone where they can be, that they touch whole pages only, and that the others take over wherever they end.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_storage import make_place, opened, pattern, read
from vhdkit.storage import file_copy
from vhdkit.storage.fast_paths import FastPath, without
from vhdkit.storage.file_copy import LONG_BYTES, LongCopies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhdkit.storage.protocols import Storage

SECTOR, PAGE, MIB = 512, file_copy._PAGE, 1 << 20  # noqa: SLF001 - what a direct write is of
RAW = pattern(5 * MIB)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="O_DIRECT and FICLONERANGE are Linux's"),
    pytest.mark.fast_path("direct"),
    pytest.mark.fast_path("share"),
]


class Direct:
    """The direct writes of a process, as (offset, length), and what becomes of them, and of reading for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes: list[tuple[int, int]] = []
        self.outcome: Callable[[int, int], int] = lambda _offset, length: length
        self.reading: Callable[[int, int], int] = lambda _offset, length: length
        # No file system writes half a page direct; one that ends within a page has written it by other means.
        self.by_other_means: Any = None
        self._splice = os.splice
        monkeypatch.setattr(os, "splice", self.splice)

    def splice(
        self,
        source: int,
        target: int,
        count: int,
        offset_src: int | None = None,
        offset_dst: int | None = None,
        flags: int = 0,
    ) -> int:
        if offset_dst is None:
            assert offset_src is not None
            assert flags == os.SPLICE_F_NONBLOCK
            return self._splice(source, target, self.reading(offset_src, count), offset_src, flags=flags)
        assert fcntl.fcntl(target, fcntl.F_GETFL) & os.O_DIRECT
        length = self.outcome(offset_dst, count)
        self.writes.append((offset_dst, length))
        if self.by_other_means is None:
            return self._splice(source, target, length, offset_dst=offset_dst)
        data = b""
        while len(data) < length:
            data += os.read(source, length - len(data))
        return os.pwrite(self.by_other_means._descriptor, data, offset_dst)  # noqa: SLF001


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Direct:
    if file_copy._file_system(os.stat(tmp_path).st_dev) not in file_copy._DIRECT_FILE_SYSTEMS:  # noqa: SLF001
        pytest.skip("direct writes are not made on this file system")
    return Direct(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Storage, Storage]]:
    place = make_place("local", str(tmp_path))
    source = place.folder.open(place.put("source", RAW))
    target = place.folder.open(place.put("target", b"T" * len(RAW)), writable=True)
    yield source, target
    source.close()
    target.close()


def failing(code: int) -> Callable[[int, int], int]:
    def fail(_offset: int, _length: int) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def expected(source_offset: int, offset: int, length: int, size: int = len(RAW)) -> bytes:
    piece = RAW[source_offset : source_offset + length]
    return (b"T" * offset + piece).ljust(size, b"T")


sectors = st.integers(0, 24).map(lambda count: count * SECTOR)
lengths = st.one_of(
    st.integers(-3, 3).map(lambda more: LONG_BYTES + more * SECTOR), st.integers(1, 8000).map(lambda n: n * SECTOR)
)


@settings(max_examples=40, deadline=None)
@given(source_offset=sectors, offset=sectors, length=lengths)
def test_copies_of_any_sectors_have_the_bytes_and_leave_those_around(
    source_offset: int, offset: int, length: int
) -> None:
    with opened("local") as source, opened("local") as target:
        source.write_at(0, RAW)
        target.write_at(0, b"T" * len(RAW))
        target.copy_from(source, source_offset, offset, length)
        assert read(target, 0, 2 * len(RAW)) == expected(source_offset, offset, length)


@settings(max_examples=40, deadline=None)
@given(lead=sectors, offset=sectors, length=lengths)
def test_writes_of_any_sectors_have_the_bytes_and_leave_those_around(lead: int, offset: int, length: int) -> None:
    with opened("local") as target:
        target.write_at(0, b"T" * len(RAW))
        target.write_at(offset, memoryview(RAW)[lead : lead + length])
        assert read(target, 0, 2 * len(RAW)) == expected(lead, offset, length)


@pytest.mark.parametrize(
    ("source_offset", "offset"), [(0, 0), (SECTOR, 0), (3 * SECTOR, 5 * SECTOR), (0, PAGE - SECTOR)]
)
def test_the_whole_pages_of_a_long_copy_are_written_direct_and_nothing_else(
    files: tuple[Storage, Storage], direct: Direct, source_offset: int, offset: int
) -> None:
    source, target = files
    target.copy_from(source, source_offset, offset, 4 * MIB + 3 * SECTOR)
    direct.writes.sort()
    first, last = direct.writes[0][0], sum(direct.writes[-1])
    assert first == -(-offset // PAGE) * PAGE
    assert last == (offset + 4 * MIB + 3 * SECTOR) // PAGE * PAGE
    assert sum(length for _, length in direct.writes) == last - first
    assert read(target, 0, len(RAW)) == expected(source_offset, offset, 4 * MIB + 3 * SECTOR)


def test_what_is_short_is_not_written_direct(files: tuple[Storage, Storage], direct: Direct) -> None:
    source, target = files
    target.copy_from(source, 0, 0, LONG_BYTES - SECTOR)
    target.write_at(0, RAW[: LONG_BYTES - SECTOR])
    assert direct.writes == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("after", [0, 1])
def test_where_direct_writes_end_the_other_ways_go_on(
    files: tuple[Storage, Storage], direct: Direct, code: int, after: int
) -> None:
    source, target = files
    half, fail = MIB // 4 // PAGE * PAGE, failing(code)
    direct.outcome = lambda at, length: half if len(direct.writes) < after else fail(at, length)
    target.copy_from(source, SECTOR, 0, MIB // 2)
    assert len(direct.writes) == after
    assert read(target, 0, len(RAW)) == expected(SECTOR, 0, MIB // 2)


@pytest.mark.parametrize("short", [1, SECTOR, PAGE, 3 * PAGE + 1])
def test_direct_writes_that_write_less_lose_nothing(files: tuple[Storage, Storage], direct: Direct, short: int) -> None:
    source, target = files
    direct.by_other_means = target
    direct.outcome = lambda _, length: max(0, length - short)
    target.copy_from(source, 0, 0, 4 * MIB)
    assert direct.writes
    assert read(target, 0, len(RAW)) == expected(0, 0, 4 * MIB)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_disk_is_told_and_names_the_file_that_is_written(
    files: tuple[Storage, Storage], direct: Direct, code: int
) -> None:
    source, target = files
    direct.outcome = failing(code)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        target.copy_from(source, 0, 0, MIB)
    assert (caught.value.errno, caught.value.filename) == (code, target.path)


def test_what_was_written_into_the_same_pages_before_and_after_is_there(
    files: tuple[Storage, Storage], direct: Direct
) -> None:
    source, target = files
    for offset in (0, PAGE, MIB, MIB + PAGE):
        target.write_at(offset, b"before" * 200)
    target.copy_from(source, 0, SECTOR, MIB)
    target.write_at(0, b"after")
    target.write_at(SECTOR + MIB, b"behind")
    target.sync()
    wanted = bytearray(expected(0, SECTOR, MIB))
    wanted[:SECTOR] = b"after" + (b"before" * 200)[5:SECTOR]
    tail = bytearray(b"T" * (2 * PAGE))
    for offset in (0, PAGE):
        tail[offset : offset + 1200] = b"before" * 200
    wanted[MIB + SECTOR : MIB + 2 * PAGE] = tail[SECTOR:]
    wanted[MIB + SECTOR : MIB + SECTOR + 6] = b"behind"
    assert direct.writes
    assert read(target, 0, len(RAW)) == bytes(wanted)


def test_a_copy_may_end_behind_the_file_and_lengthens_it(files: tuple[Storage, Storage], direct: Direct) -> None:
    source, target = files
    target.truncate(MIB + 700)
    target.copy_from(source, 0, MIB, 2 * MIB + SECTOR)
    assert target.size() == 3 * MIB + SECTOR
    assert read(target, 0, 9 * MIB) == b"T" * MIB + RAW[: 2 * MIB + SECTOR]
    assert direct.writes


def test_holes_of_the_source_are_zeros(files: tuple[Storage, Storage], tmp_path: Path) -> None:
    _, target = files
    place = make_place("local", str(tmp_path))
    hollow = place.folder.create(place.path("hollow"))
    hollow.truncate(3 * MIB)
    hollow.write_at(MIB, RAW[:PAGE])
    target.copy_from(hollow, 0, 0, 3 * MIB)
    assert read(target, 0, 3 * MIB) == (bytes(MIB) + RAW[:PAGE]).ljust(3 * MIB, b"\0")
    hollow.close()


def test_a_source_that_ends_early_is_told_by_its_name(files: tuple[Storage, Storage], direct: Direct) -> None:
    source, target = files
    with pytest.raises(OSError, match="ended while") as caught:
        target.copy_from(source, 4 * MIB, 0, 2 * MIB)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, source.path)
    assert all(sum(write) <= MIB for write in direct.writes)


def test_a_file_is_copied_within_itself_by_other_ways(files: tuple[Storage, Storage], direct: Direct) -> None:
    _, target = files
    target.write_at(0, RAW[: MIB - SECTOR])
    direct.writes.clear()
    target.copy_from(target, 0, 2 * MIB, MIB - SECTOR)
    assert direct.writes == []
    assert read(target, 2 * MIB, MIB - SECTOR) == RAW[: MIB - SECTOR]


def test_file_systems_on_which_it_was_not_measured_are_written_as_before(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_copy, "_DIRECT_FILE_SYSTEMS", frozenset({"nfs4"}))
    source, target = files
    target.copy_from(source, 0, 0, MIB)
    assert direct.writes == []
    assert read(target, 0, MIB) == RAW[:MIB]


def test_the_kind_of_a_file_system_is_told_by_its_device_and_of_none_nothing() -> None:
    assert file_copy._file_system(os.stat("/proc").st_dev) == "proc"  # noqa: SLF001
    assert file_copy._file_system(os.makedev(4095, 77)) == ""  # noqa: SLF001


def test_a_mount_point_of_any_bytes_hinders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.makedev(8, 1)
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(b"30 1 8:2 / /mnt/\xff\xfe rw - tmpfs none rw\n31 1 8:1 / /mnt/\xe9 rw - ext4 /dev/x rw\n")
    monkeypatch.setattr(file_copy, "_MOUNTS", str(mounts))
    assert file_copy._file_system(device) == "ext4"  # noqa: SLF001
    assert file_copy._file_system(os.makedev(8, 3)) == ""  # noqa: SLF001


def test_a_closed_file_has_no_descriptor_left(tmp_path: Path, direct: Direct) -> None:
    place = make_place("local", str(tmp_path))
    source = place.folder.open(place.put("source", RAW))
    before = set(os.listdir("/proc/self/fd"))
    target = place.folder.create(place.path("target"))
    target.copy_from(source, 0, 0, MIB)
    assert direct.writes
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2
    target.close()
    target.close()
    assert set(os.listdir("/proc/self/fd")) == before
    source.close()


# The pipe


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 7), pages=st.integers(0, 3000), lead=st.integers(0, 7))
def test_windows_are_all_of_a_piece_and_each_fits_into_a_pipe(start: int, pages: int, lead: int) -> None:
    start *= SECTOR
    stop, source_offset = start + pages * PAGE, lead * SECTOR
    windows = list(file_copy._windows(3, source_offset, -start % PAGE, start, stop))  # noqa: SLF001
    assert sum(window.length for window in windows) == stop - start
    at = start
    for window in windows:
        assert (window.piece, window.is_first) == (3, at == start)
        assert (window.source_offset - source_offset, window.offset + start) == (at, at + -start % PAGE + start)
        assert window.length % PAGE == 0
        places = -(-(window.source_offset + window.length) // PAGE) - window.source_offset // PAGE
        assert places * PAGE <= file_copy._PIPE_BYTES  # noqa: SLF001
        at += window.length
    # None is a remainder that would be a write of a page.
    assert len({-(-window.length // PAGE) for window in windows[:-1]}) <= 1
    assert len(windows) == -(-pages * PAGE // (file_copy._PIPE_BYTES - (PAGE if (lead * SECTOR + start) % PAGE else 0)))  # noqa: SLF001


@settings(max_examples=40, deadline=None)
@given(
    shares=st.lists(st.integers(1, 2 * MIB), min_size=1, max_size=6),
    writes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    lead=st.integers(0, 8),
)
def test_whatever_parts_a_pipe_is_filled_and_emptied_in_the_bytes_are_there(
    shares: list[int], writes: list[int], lead: int
) -> None:
    fills, drains = itertools.cycle(shares), itertools.cycle(writes)
    with pytest.MonkeyPatch.context() as patch, opened("local") as source, opened("local") as target:
        direct = Direct(patch)
        direct.reading = lambda _, length: min(length, next(fills))
        direct.outcome = lambda _, length: min(length, next(drains) * PAGE)
        source.write_at(0, RAW)
        target.write_at(0, b"T" * len(RAW))
        target.copy_from(source, lead * SECTOR, 0, 2 * MIB)
        assert read(target, 0, len(RAW)) == expected(lead * SECTOR, 0, 2 * MIB)


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_source_that_cannot_be_read_for_it_is_read_by_other_ways(
    files: tuple[Storage, Storage], direct: Direct, reads: int
) -> None:
    source, target = files
    count = itertools.count()
    direct.reading = lambda at, length: MIB // 4 if next(count) < reads else failing(errno.EIO)(at, length)
    target.copy_from(source, 0, 0, MIB)
    assert sum(length for _, length in direct.writes) == reads * MIB // 4
    assert read(target, 0, len(RAW)) == expected(0, 0, MIB)


@pytest.mark.parametrize("what", ["pipe", "size", "splice"])
def test_where_no_pipe_is_to_be_had_the_other_ways_go_on_and_nothing_is_left_open(
    what: str, files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fcntl.fcntl

    def refuse(descriptor: int, request: int, argument: Any = 0) -> Any:
        if request == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return control(descriptor, request, argument)

    def no_pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    source, target = files
    before = len(os.listdir("/proc/self/fd"))
    if what == "pipe":
        monkeypatch.setattr(os, "pipe", no_pipe)
    elif what == "size":
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    else:
        monkeypatch.delattr(os, "splice")
    target.copy_from(source, SECTOR, 0, 3 * MIB)
    monkeypatch.undo()
    assert direct.writes == []
    assert read(target, 0, len(RAW)) == expected(SECTOR, 0, 3 * MIB)
    # The second descriptor of the target is kept.
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# Several at once


class AtOnce:
    """Which writes of a process are under way together: direct ones, and beside them those by the page cache."""

    def __init__(self, direct: Direct, monkeypatch: pytest.MonkeyPatch, *, meet: int = 1) -> None:
        self.direct = direct
        self.meeting = threading.Barrier(meet)
        self.under_way = self.most = self.beside = 0
        self._lock = threading.Lock()
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "splice", self.splice)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self.beside += bool(self.under_way)
        return self._pwrite(descriptor, data, offset)

    def splice(
        self,
        source: int,
        target: int,
        count: int,
        offset_src: int | None = None,
        offset_dst: int | None = None,
        flags: int = 0,
    ) -> int:
        if offset_dst is None:
            return self.direct.splice(source, target, count, offset_src, flags=flags)
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            self.meeting.wait(10)
            return self.direct.splice(source, target, count, offset_dst=offset_dst)
        finally:
            with self._lock:
                self.under_way -= 1


PIECES = [(3 * SECTOR, SECTOR, MIB), (MIB + 5 * SECTOR, MIB + 2 * SECTOR, MIB), (2 * MIB, 2 * MIB + 3 * SECTOR, MIB)]
PIECES.append((3 * MIB, 3 * MIB + 4 * SECTOR, MIB))


def copied(pieces: list[tuple[int, int, int]]) -> bytes:
    found = bytearray(b"T" * len(RAW))
    for source_offset, offset, length in pieces:
        found[offset : offset + length] = RAW[source_offset : source_offset + length]
    return bytes(found)


def copy_many(target: Storage, source: Storage, pieces: list[tuple[int, int, int]]) -> None:
    source_offsets, offsets, lengths = map(list, zip(*pieces, strict=True))
    assert target.copy_many_from(source, source_offsets, offsets, lengths) == len(pieces)


@pytest.mark.fast_path("many")
@pytest.mark.fast_path("at-once")
def test_three_long_pieces_are_written_at_once_and_no_more(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    # Each waits for two others: six that came one by one would break the barrier.
    writes = AtOnce(direct, monkeypatch, meet=3)
    pieces = [(number * LONG_BYTES, number * LONG_BYTES, LONG_BYTES) for number in range(6)]
    copy_many(target, source, pieces)
    assert (writes.most, writes.under_way) == (3, 0)
    assert len(direct.writes) == len(pieces)
    assert read(target, 0, len(RAW)) == copied(pieces)


@pytest.mark.fast_path("many")
def test_nothing_is_written_by_the_page_cache_while_long_pieces_are_under_way(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    writes = AtOnce(direct, monkeypatch)
    short = [(SECTOR * number, 4 * MIB + PAGE * number, SECTOR) for number in range(1, 20)]
    mixed = [*short[:3], *PIECES[:2], *short[3:9], *PIECES[2:], *short[9:]]
    copy_many(target, source, mixed)
    assert direct.writes
    assert writes.beside == 0
    assert read(target, 0, len(RAW)) == copied(mixed)


@pytest.mark.fast_path("many")
def test_long_pieces_that_overlap_are_written_in_their_order(files: tuple[Storage, Storage], direct: Direct) -> None:
    source, target = files
    pieces = [(0, 0, 2 * MIB), (3 * MIB, MIB + SECTOR, MIB), (MIB, MIB // 2, MIB), (5 * SECTOR, PAGE, LONG_BYTES)]
    for _ in range(3):
        copy_many(target, source, pieces)
        assert read(target, 0, len(RAW)) == copied(pieces)
    assert direct.writes


@pytest.mark.fast_path("many")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("which", range(4))
def test_of_several_the_error_of_any_is_told_when_none_is_under_way(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch, which: int, code: int
) -> None:
    source, target = files
    writes = AtOnce(direct, monkeypatch)
    begun = itertools.count()
    direct.outcome = lambda at, length: failing(code)(at, length) if next(begun) == which else length
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        copy_many(target, source, PIECES)
    assert (caught.value.errno, caught.value.filename) == (code, target.path)
    assert writes.under_way == 0
    threads = [thread.name for thread in threading.enumerate()]
    assert "vhdkit-aside" not in threads


@pytest.mark.fast_path("many")
@pytest.mark.parametrize("which", range(4))
def test_of_several_one_that_cannot_be_written_direct_is_written_by_other_ways(
    files: tuple[Storage, Storage], direct: Direct, which: int
) -> None:
    source, target = files
    begun = itertools.count()
    direct.outcome = lambda at, length: failing(errno.EINVAL)(at, length) if next(begun) == which else length
    copy_many(target, source, PIECES)
    assert read(target, 0, len(RAW)) == copied(PIECES)


@pytest.mark.fast_path("at-once")
def test_of_a_piece_only_what_follows_on_counts_as_written(files: tuple[Storage, Storage], direct: Direct) -> None:
    """The first of two windows falls short, and the second, under way meanwhile, does not."""
    source, target = files
    second = threading.Event()

    def outcome(offset: int, length: int) -> int:
        if offset >= MIB:
            second.set()
            return length
        assert second.wait(10)
        return PAGE if offset == 0 else failing(errno.EINVAL)(offset, length)

    direct.outcome = outcome
    target.copy_from(source, 0, 0, 2 * MIB)
    assert sorted(direct.writes) == [(0, PAGE), (MIB, MIB)]
    assert read(target, 0, len(RAW)) == copied([(0, 0, 2 * MIB)])


@pytest.mark.fast_path("many")
@pytest.mark.fast_path("at-once")
def test_an_error_of_one_thread_stops_the_other(files: tuple[Storage, Storage], direct: Direct) -> None:
    source, target = files
    has_failed = threading.Event()

    def outcome(offset: int, length: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            has_failed.set()
            return failing(errno.EIO)(offset, length)
        assert has_failed.wait(10)
        time.sleep(0.1)
        return length

    direct.outcome = outcome
    pieces = [(number * LONG_BYTES, number * LONG_BYTES, LONG_BYTES) for number in range(20)]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        copy_many(target, source, pieces)
    assert len(direct.writes) <= 1


@pytest.mark.fast_path("many")
def test_a_ctrl_c_waits_for_the_writes_that_are_under_way(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    writes = AtOnce(direct, monkeypatch)

    def interrupted(_offset: int, length: int) -> int:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.2)
        return length

    direct.outcome = interrupted
    with pytest.raises(KeyboardInterrupt):
        copy_many(target, source, PIECES)
    assert writes.under_way == 0
    assert "vhdkit-aside" not in [thread.name for thread in threading.enumerate()]
    # What was not begun is not written.
    assert len(direct.writes) <= 2


@pytest.mark.fast_path("many")
@pytest.mark.fast_path("at-once")
def test_one_ctrl_c_while_the_others_are_waited_for_waits_for_all_of_them(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source, target = files
    writes = AtOnce(direct, monkeypatch, meet=3)

    def slowly(_offset: int, length: int) -> int:
        # The first that is waited for ends before the second.
        others: list[threading.Thread] = target._long_copies._writing  # type: ignore[attr-defined] # noqa: SLF001
        if threading.current_thread() in others:
            time.sleep(0.4 + 0.4 * others.index(threading.current_thread()))
        return length

    direct.outcome = slowly
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the timer may strike at once
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            copy_many(target, source, PIECES[:3])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert writes.under_way == 0
    assert "vhdkit-aside" not in [thread.name for thread in threading.enumerate()]


def test_a_ctrl_c_while_a_pipe_is_made_leaves_nothing_open(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fcntl.fcntl

    def interrupted(descriptor: int, request: int, argument: Any = 0) -> Any:
        if request == fcntl.F_SETPIPE_SZ:
            raise KeyboardInterrupt
        return control(descriptor, request, argument)

    source, target = files
    target.copy_from(source, 0, 0, LONG_BYTES)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "fcntl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target.copy_from(source, 0, 0, LONG_BYTES)
    assert len(os.listdir("/proc/self/fd")) == before
    assert direct.writes == [(0, LONG_BYTES)]


def test_a_ctrl_c_while_the_second_descriptor_is_closed_closes_no_other_file_later(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    target.copy_from(source, 0, 0, LONG_BYTES)
    assert direct.writes
    second, close = target._long_copies._direct, os.close  # type: ignore[attr-defined] # noqa: SLF001

    def interrupted(descriptor: int) -> None:
        close(descriptor)
        if descriptor == second:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target.close()
    monkeypatch.setattr(os, "close", close)
    other = os.open(source.path, os.O_RDONLY)
    try:
        assert other == second
        target.close()
        os.fstat(other)
    finally:
        close(other)


@pytest.mark.fast_path("many")
def test_without_a_thread_long_pieces_are_written_one_by_one(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source, target = files
    monkeypatch.setattr(threading.Thread, "start", fail)
    copy_many(target, source, PIECES)
    assert len(direct.writes) == len(PIECES)
    assert read(target, 0, len(RAW)) == copied(PIECES)


# No longer than until


class Slow:
    """A clock that goes on by a second with each long write, direct or by the kernel."""

    def __init__(self, direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._lock = threading.Lock()
        direct.outcome = self.written
        monkeypatch.setattr("vhdkit.storage.file_copy.time.monotonic", lambda: self.now)
        copy = os.copy_file_range

        def copy_file_range(source: int, target: int, count: int, at: int, to: int) -> int:
            self.now += 1
            return copy(source, target, count, at, to)

        monkeypatch.setattr(os, "copy_file_range", copy_file_range)

    def written(self, _offset: int, length: int) -> int:
        with self._lock:
            self.now += 1
        return length


FOUR = [(number * MIB, number * MIB, MIB) for number in (3, 0, 1, 2)]


@pytest.mark.fast_path("many")
@pytest.mark.parametrize("until", [-1.0, 0.5, 1.5, 2.5, 3.5, 9.0])
def test_long_pieces_that_were_not_begun_in_time_are_left(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch, until: float
) -> None:
    source, target = files
    slow = Slow(direct, monkeypatch)
    source_offsets, offsets, lengths = map(list, zip(*FOUR, strict=True))
    with without(FastPath.AT_ONCE):
        count = target.copy_many_from(source, source_offsets, offsets, lengths, until)
    assert count == min(4, max(1, int(until + 1)))
    assert slow.now == count
    assert read(target, 0, len(RAW)) == copied(FOUR[:count])


@pytest.mark.fast_path("many")
@pytest.mark.parametrize("until", [-1.0, 0.5, 1.5, 9.0])
def test_of_several_at_once_those_that_are_counted_are_all_there(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch, until: float
) -> None:
    source, target = files
    Slow(direct, monkeypatch)
    left = FOUR
    while left:
        source_offsets, offsets, lengths = map(list, zip(*left, strict=True))
        count = target.copy_many_from(source, source_offsets, offsets, lengths, until)
        assert 1 <= count <= len(left)
        for source_offset, offset, length in left[:count]:
            assert read(target, offset, length) == RAW[source_offset : source_offset + length]
        left = left[count:]
    assert read(target, 0, len(RAW)) == copied(FOUR)


@pytest.mark.fast_path("many")
def test_a_piece_that_was_begun_in_time_is_written_to_its_end(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = files
    slow = Slow(direct, monkeypatch)
    pieces = [(0, 0, 3 * MIB), (3 * MIB, 3 * MIB, MIB)]
    source_offsets, offsets, lengths = map(list, zip(*pieces, strict=True))
    assert target.copy_many_from(source, source_offsets, offsets, lengths, -1) == 1
    assert slow.now == 3
    assert read(target, 0, len(RAW)) == copied(pieces[:1])


@pytest.mark.fast_path("many")
@pytest.mark.fast_path("kernel-copy")
@pytest.mark.parametrize("until", [-1.0, 1.5])
def test_where_nothing_is_written_direct_time_counts_as_well(
    files: tuple[Storage, Storage], direct: Direct, monkeypatch: pytest.MonkeyPatch, until: float
) -> None:
    source, target = files
    Slow(direct, monkeypatch)
    source_offsets, offsets, lengths = map(list, zip(*FOUR, strict=True))
    with without(FastPath.DIRECT):
        count = target.copy_many_from(source, source_offsets, offsets, lengths, until)
    assert count == (1 if until < 0 else 2)
    assert direct.writes == []
    assert read(target, 0, len(RAW)) == copied(FOUR[:count])


@pytest.mark.fast_path("many")
def test_pieces_of_which_one_is_over_another_count_their_time_each(files: tuple[Storage, Storage]) -> None:
    source, target = files
    pieces = [(0, 0, MIB), (2 * MIB, MIB // 2, MIB), (0, MIB, SECTOR)]
    source_offsets, offsets, lengths = map(list, zip(*pieces, strict=True))
    assert target.copy_many_from(source, source_offsets, offsets, lengths, -1) == 1
    assert read(target, 0, len(RAW)) == copied(pieces[:1])


# Shared extents


class Cloning:
    """What FICLONERANGE was asked for, and a stand-in that does it by copying; `error` is raised instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.error = 0
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, target: int, request: int, argument: bytes) -> int:
        assert request == file_copy._CLONE_RANGE  # noqa: SLF001
        source, source_offset, length, offset = file_copy._CLONE_FIELDS.unpack(argument)  # noqa: SLF001
        self.asked.append((source_offset, length, offset))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        assert os.pwrite(target, os.pread(source, length, source_offset), offset) == length
        return 0


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> Cloning:
    return Cloning(monkeypatch)


def test_whole_pages_that_lie_alike_are_shared(files: tuple[Storage, Storage], cloning: Cloning) -> None:
    source, target = files
    target.copy_from(source, PAGE + SECTOR, SECTOR, MIB)
    assert cloning.asked == [(2 * PAGE, MIB - PAGE, PAGE)]
    assert read(target, 0, len(RAW)) == expected(PAGE + SECTOR, SECTOR, MIB)


@pytest.mark.fast_path("many")
@pytest.mark.parametrize("until", [-1.0, 0.5, 1.5, 9.0])
def test_no_more_is_shared_than_there_is_time_for(
    files: tuple[Storage, Storage], cloning: Cloning, monkeypatch: pytest.MonkeyPatch, until: float
) -> None:
    source, target = files
    monkeypatch.setattr("vhdkit.storage.file_copy.time.monotonic", lambda: float(len(cloning.asked)))
    source_offsets, offsets, lengths = map(list, zip(*FOUR, strict=True))
    count = target.copy_many_from(source, source_offsets, offsets, lengths, until)
    assert count == len(cloning.asked) == min(4, max(1, int(until + 1)))
    assert read(target, 0, len(RAW)) == copied(FOUR[:count])


def test_what_lies_otherwise_is_not_asked_for(files: tuple[Storage, Storage], cloning: Cloning) -> None:
    source, target = files
    target.copy_from(source, SECTOR, 0, MIB)
    assert cloning.asked == []
    assert read(target, 0, len(RAW)) == expected(SECTOR, 0, MIB)


@pytest.mark.parametrize(
    ("code", "times"), [(errno.EOPNOTSUPP, 1), (errno.EXDEV, 1), (errno.ENOTTY, 1), (errno.EINVAL, 3)]
)
def test_a_file_system_without_shared_extents_is_asked_once(
    files: tuple[Storage, Storage], cloning: Cloning, code: int, times: int
) -> None:
    source, target = files
    cloning.error = code
    for _ in range(3):
        target.copy_from(source, 0, 0, MIB)
    assert len(cloning.asked) == times
    assert read(target, 0, MIB) == RAW[:MIB]


def test_what_cannot_be_shared_for_whatever_reason_is_copied(files: tuple[Storage, Storage], cloning: Cloning) -> None:
    source, target = files
    cloning.error = errno.ENOSPC
    target.copy_from(source, 0, 0, MIB)
    assert read(target, 0, MIB) == RAW[:MIB]


@pytest.mark.parametrize(("failing", "which"), [("preadv", 0), ("pwrite", 1)])
def test_an_error_of_the_kernels_copy_names_the_file_that_it_is_of(
    files: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, failing: str, which: int
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source, target = files
    monkeypatch.setattr(LongCopies, "copy", lambda _, __, pieces, ___: [(0, 0)] * len(pieces))
    # It says that something failed, and not which of the two.
    monkeypatch.setattr(os, "copy_file_range", fails)
    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        target.copy_from(source, 0, 0, MIB)
    assert caught.value.filename == files[which].path
