"""Batches are written one after the other, copies before what lies over them (vhdkit/chain/batch_copier.py)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

import vhdkit
from vhdkit.chain import batch_copier
from vhdkit.chain.batch_copier import BatchCopier
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vhdkit.chain.chain import Chain
    from vhdkit.storage.protocols import Storage

KIB = 1024
NOTHING = extents.single(0, 0, Kind.DATA).of(Kind.DATA)
NOWHERE = np.empty(0, np.int64)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Chain]:
    path = tmp_path / "base.vhd"
    vhdkit.create_image(path, size=8 << 20)
    with vhdkit.open_chain(path, writable=True) as chain:
        chain.write(0, np.arange(1, (8 << 20) // 8 + 1, dtype=np.int64).tobytes())
    with vhdkit.open_chain(path) as chain:
        yield chain


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Storage]:
    with LocalFolder().create(str(tmp_path / "new")) as storage:
        yield storage


def stretch(chain: Chain, start: int, stop: int) -> tuple[Extents, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    found = extents.concatenate([part.of(Kind.DATA) for part in chain.extents(start, stop - start)])
    clipped = extents.clipped(found, start, stop)
    return clipped, clipped.start


def content(storage: Storage) -> bytes:
    raw = bytearray(storage.size())
    storage.read_into(0, raw)
    return bytes(raw)


@pytest.mark.parametrize("batch_bytes", [1, 300 * KIB, 32 << 20])
def test_bytes_lie_over_the_copies_that_were_added_with_them(
    batch_bytes: int, source: Chain, target: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_copier, "_BATCH_BYTES", batch_bytes)
    expected = bytearray(source.read(0, 6 << 20))
    reused = bytearray(4 * KIB)
    with BatchCopier(source.layers, target) as copier:
        for at in range(0, 6 << 20, 1 << 20):
            reused[:] = bytes([at >> 20 | 0x80]) * len(reused)
            place = at + 40 * KIB
            copier.add(*stretch(source, at, at + (1 << 20)), [(place, memoryview(reused))], at + (1 << 20))
            expected[place : place + len(reused)] = reused
        copier.finish(6 << 20)
    assert content(target) == expected


def test_bytes_between_batches_are_written_though_nothing_is_copied(source: Chain, target: Storage) -> None:
    with BatchCopier(source.layers, target) as copier:
        copier.add(NOTHING, NOWHERE, [(0, memoryview(b"first"))], 5)
        copier.add(*stretch(source, 0, 1 << 20), [], 2 << 20)
        copier.add(NOTHING, NOWHERE, [(1 << 20, memoryview(b"last"))], 2 << 20)
        copier.finish(2 << 20)
    assert content(target) == source.read(0, 1 << 20) + b"last".ljust(1 << 20, b"\0")


def test_the_error_of_a_batch_is_raised_and_nothing_is_written_any_more(
    source: Chain, target: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_copier, "_BATCH_BYTES", 1)

    def fail(*_: object) -> int:
        raise OSError(5, "injected")

    def copy() -> None:
        with BatchCopier(source.layers, target) as copier:
            copier.add(*stretch(source, 0, 1 << 20), [], 0)
            copier.add(*stretch(source, 1 << 20, 2 << 20), [], 0)
            copier.finish(0)

    before = threading.active_count()
    monkeypatch.setattr(type(target), "copy_many_from", fail)
    with pytest.raises(OSError, match="injected"):
        copy()
    assert threading.active_count() == before


def test_a_caller_that_fails_waits_for_the_batch_that_is_written(
    source: Chain, target: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_copier, "_BATCH_BYTES", 1)
    is_begun, may_end, is_over = threading.Event(), threading.Event(), threading.Event()

    def slow(*_: object) -> int:
        is_begun.set()
        assert may_end.wait(10)
        is_over.set()
        return 1

    def stop() -> None:
        with BatchCopier(source.layers, target) as copier:
            copier.add(*stretch(source, 0, 1 << 20), [], 0)
            assert is_begun.wait(10)
            threading.Timer(0.05, may_end.set).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(type(target), "copy_many_from", slow)
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert is_over.is_set()
