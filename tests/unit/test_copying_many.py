"""Copying many pieces in one call, and syncs that are begun: what every Storage does (vhdkit/storage/protocols.py)."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdkit
from tests.crash.failing import shorten_system_calls
from tests.unit.test_storage import KINDS, opened, pattern, read
from vhdkit.storage import local_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhdkit.disk.file_image import FileImage
    from vhdkit.storage.protocols import Storage

KERNEL = 256 << 10
DISKS = ["local", "portable"]
needs_kernel_copy = pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the kernel has no such call")


def expected(source: bytes, target: bytes, pieces: list[tuple[int, int, int]]) -> bytes:
    result = bytearray(target)
    for source_offset, offset, length in pieces:
        result.extend(bytes(max(0, offset + length - len(result)) if length else 0))
        result[offset : offset + length] = source[source_offset : source_offset + length]
    return bytes(result)


def copy_many(target: Storage, source: Storage, pieces: list[tuple[int, int, int]]) -> None:
    source_offsets, offsets, lengths = map(list, zip(*pieces, strict=True))
    assert target.copy_many_from(source, source_offsets, offsets, lengths) == len(pieces)


SMALL = st.tuples(st.integers(0, 1500), st.integers(0, 4000), st.integers(0, 500))


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@settings(max_examples=25)
@given(pieces=st.lists(SMALL, min_size=1, max_size=30))
def test_many_pieces_are_copied_in_their_order(
    source_kind: str, target_kind: str, pieces: list[tuple[int, int, int]]
) -> None:
    with opened(source_kind) as source, opened(target_kind) as target:
        source.write_at(0, pattern(2000))
        target.write_at(0, b"T" * 1000)
        copy_many(target, source, pieces)
        found = read(target, 0, target.size())
    assert found == expected(pattern(2000), b"T" * 1000, pieces)


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_pieces_around_the_kernels_threshold_are_copied(source_kind: str, target_kind: str) -> None:
    lengths = [0, 1, KERNEL - 1, KERNEL, KERNEL + 1, 512]
    pieces = [(7 * at, sum(lengths[:at]) + 3 * at, length) for at, length in enumerate(lengths)]
    raw = pattern(2 * KERNEL)
    with opened(source_kind) as source, opened(target_kind) as target:
        source.write_at(0, raw)
        copy_many(target, source, pieces)
        assert read(target, 0, target.size()) == expected(raw, b"", pieces)


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_no_pieces_are_nothing_to_copy(source_kind: str, target_kind: str) -> None:
    with opened(source_kind) as source, opened(target_kind) as target:
        source.write_at(0, b"abc")
        assert target.copy_many_from(source, [], [], []) == 0
        assert target.size() == 0


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@settings(max_examples=15)
@given(pieces=st.lists(SMALL, min_size=1, max_size=12))
def test_what_is_late_is_left_and_asking_again_ends(
    source_kind: str, target_kind: str, pieces: list[tuple[int, int, int]]
) -> None:
    with opened(source_kind) as source, opened(target_kind) as target:
        source.write_at(0, pattern(2000))
        target.write_at(0, b"T" * 1000)
        for number, piece in enumerate(pieces):
            source_offsets, offsets, lengths = map(list, zip(*pieces[number:], strict=True))
            assert target.copy_many_from(source, source_offsets, offsets, lengths, -1) == 1, piece
            found = read(target, 0, target.size())
            assert found == expected(pattern(2000), b"T" * 1000, pieces[: number + 1])


@pytest.mark.parametrize("target_kind", KINDS)
def test_a_long_piece_behind_short_ones_may_be_late(target_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = pattern(2 * KERNEL)
    with opened("local") as source, opened(target_kind) as target:
        source.write_at(0, raw)
        clock = iter(range(10_000))
        monkeypatch.setattr("vhdkit.storage.file_copy.time.monotonic", lambda: next(clock))
        lengths = [100, 200, 300, KERNEL, KERNEL]
        ends = [sum(lengths[:at]) for at in range(len(lengths))]
        count = target.copy_many_from(source, ends, ends, lengths, 2.5)
        assert 1 <= count < len(lengths)
        assert read(target, 0, sum(lengths[:count])) == raw[: sum(lengths[:count])]


@needs_kernel_copy
@pytest.mark.fast_path("kernel-copy")
@pytest.mark.fast_path("many")
def test_the_kernel_copies_long_pieces_and_no_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, copy = [], os.copy_file_range

    def copy_file_range(source: int, target: int, count: int, at: int, to: int) -> int:
        copied.append(count)
        return copy(source, target, count, at, to)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    with opened("local") as source, opened("local") as target:
        source.write_at(0, pattern(3 * KERNEL))
        copy_many(target, source, [(0, 0, KERNEL - 1), (1, KERNEL, KERNEL), (5, 3 * KERNEL, 512)])
    assert copied == [KERNEL]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_short_calls_of_the_kernel_lose_nothing(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [(11 * at, 600 * at, 512) for at in range(20)] + [(5, 20000, KERNEL + 9)]
    with opened("local") as source, opened("local") as target:
        source.write_at(0, pattern(2 * KERNEL))
        with monkeypatch.context() as patch:
            shortened = shorten_system_calls(patch, max(2, every))
            copy_many(target, source, pieces)
        assert shortened[0] > 0
        assert read(target, 0, target.size()) == expected(pattern(2 * KERNEL), b"", pieces)


@pytest.mark.parametrize("length", [1000, KERNEL + 1000])
@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_a_source_that_ends_early_is_an_error_that_names_it(source_kind: str, target_kind: str, length: int) -> None:
    with opened(source_kind) as source, opened(target_kind) as target:
        source.write_at(0, pattern(KERNEL + 500))
        target.write_at(0, b"T" * (3 * KERNEL))
        start = KERNEL + 1000 - length
        with pytest.raises(OSError, match="ended while") as caught:
            copy_many(target, source, [(0, 0, 100), (start, 200, length), (0, 2 * KERNEL, 100)])
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, source.path)
        assert read(target, 0, 200) == pattern(100) + b"T" * 100
        assert read(target, 200 + length, 3 * KERNEL) == b"T" * (2 * KERNEL + KERNEL - 200 - length)


@pytest.mark.parametrize(("call", "is_the_source"), [("pread", True), ("preadv", True), ("pwrite", False)])
@pytest.mark.fast_path("many")
def test_the_error_of_a_call_names_the_file_that_it_was_made_on(
    call: str, is_the_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened("local") as source, opened("local") as target:
        source.write_at(0, pattern(2000))
        monkeypatch.setattr(os, call, fail)
        if call == "preadv":
            # Not reached but through memory.
            monkeypatch.setattr(os, "pread", lambda *_: b"")
            monkeypatch.setattr(local_file, "copy_in_kernel", lambda *_: 0)
        with pytest.raises(OSError, match="error") as caught:
            copy_many(target, source, [(0, 0, 512)])
        monkeypatch.undo()
        assert caught.value.filename == (source if is_the_source else target).path


# Syncs that are begun


class Held:
    """An fsync that does not end until it is let go; `calls` has the descriptors and whether each was good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int = 0) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.calls: list[bool] = []
        self.error = error
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr("vhdkit.storage.local_file.fcntl", None)

    def fsync(self, descriptor: int) -> None:
        self.entered.set()
        assert self.let_go.wait(10)
        try:
            os.fstat(descriptor)
        except OSError:
            self.calls.append(False)
            return
        self.calls.append(True)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    fsync = Held(monkeypatch)
    yield fsync
    fsync.let_go.set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sync_that_was_begun_can_be_waited_for(kind: str) -> None:
    before = threading.active_count()
    with opened(kind) as storage:
        storage.write_at(0, b"abc")
        for _ in range(3):
            assert 0 <= storage.begin_sync().wait() < 10
        assert read(storage, 0, 3) == b"abc"
        assert threading.active_count() == before


@pytest.mark.parametrize("kind", DISKS)
def test_the_file_is_read_and_written_while_a_sync_is_under_way(kind: str, held: Held) -> None:
    with opened(kind) as storage:
        storage.write_at(0, b"abc")
        syncing = storage.begin_sync()
        assert held.entered.wait(10)
        storage.write_at(1, b"x")
        assert read(storage, 0, 3) == b"axc"
        assert held.calls == []
        time.sleep(0.05)
        held.let_go.set()
        assert syncing.wait() >= 0.05
        assert held.calls == [True]


@pytest.mark.parametrize("kind", DISKS)
def test_a_file_is_closed_when_the_sync_under_way_has_ended(kind: str, held: Held) -> None:
    with opened(kind) as storage:
        storage.begin_sync()
        assert held.entered.wait(10)
        closing = threading.Thread(target=storage.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        held.let_go.set()
        closing.join(10)
        assert not closing.is_alive()
        assert held.calls == [True], "the descriptor was the file's until then"


@pytest.mark.parametrize("kind", DISKS)
def test_a_sync_that_fails_is_told_by_waiting(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = Held(monkeypatch, errno.EIO)
    fsync.let_go.set()
    with opened(kind) as storage:
        syncing = storage.begin_sync()
        with pytest.raises(OSError, match="error") as caught:
            syncing.wait()
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, storage.path)
        fsync.error = 0
        storage.begin_sync().wait()


@pytest.mark.parametrize("kind", DISKS)
def test_whatever_fails_in_the_sync_is_raised_by_waiting(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(os, "fsync", fail)
    with opened(kind) as storage:
        syncing = storage.begin_sync()
        with pytest.raises(MemoryError, match="none left"):
            syncing.wait()


@pytest.mark.parametrize("error", [0, errno.EIO])
@pytest.mark.parametrize("kind", DISKS)
def test_without_a_thread_it_is_synced_at_once(kind: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fsync = Held(monkeypatch, error)
    fsync.let_go.set()
    monkeypatch.setattr(threading.Thread, "start", fail)
    with opened(kind) as storage:
        syncing = storage.begin_sync()
        assert fsync.calls == [True]
        if error:
            with pytest.raises(OSError, match="error"):
                syncing.wait()
        else:
            assert syncing.wait() >= 0


@pytest.fixture
def image(tmp_path: Path) -> Iterator[FileImage]:
    vhdkit.create_image(str(tmp_path / "a.vhd"), size=1 << 20)
    with vhdkit.open_image(str(tmp_path / "a.vhd"), writable=True) as image:
        yield image


WAYS: dict[str, Callable[[FileImage], object]] = {
    "write": lambda image: image.write_at(0, b"x"),
    "copy": lambda image: image.copy_from(image, 0, 512, 1),
    "copy many": lambda image: image.copy_many_from(image, [0], [512], [1]),
    "sync": lambda image: image.sync(),
    "begin sync": lambda image: image.begin_sync(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sync_that_failed_ends_all_writing_of_an_image(
    image: FileImage, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = Held(monkeypatch, errno.EIO)
    fsync.let_go.set()
    with pytest.raises(OSError, match="error"):
        image.begin_sync().wait()
    assert len(fsync.calls) == 1, "it is not tried again: the second would claim what the first has lost"
    with pytest.raises(vhdkit.ReadOnlyImageError, match="an earlier write failed"):
        WAYS[way](image)
    assert len(fsync.calls) == 1


def test_copying_many_that_failed_ends_all_writing_of_an_image(image: FileImage) -> None:
    with pytest.raises(OSError, match="ended while"):
        image.copy_many_from(image, [1 << 30], [0], [512])
    with pytest.raises(vhdkit.ReadOnlyImageError, match="an earlier write failed"):
        image.write_at(0, b"x")
