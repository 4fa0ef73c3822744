"""The chain index holds each window's map in bounded memory, and no write makes a map wrong."""

from __future__ import annotations

import errno
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Event, Thread
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model import Kind, Program
from tests.plainvhd import SECTOR
from tests.property.test_reading import files, open_files, ranges, run
from tests.strategies import programs
from vhdkit.chain import index
from vhdkit.chain.chain import open_chain
from vhdkit.chain.index import ChainIndex
from vhdkit.chain.resolve_layers import resolve
from vhdkit.storage.local_file import LocalStorage
from vhdkit.vhd.create import create_image
from vhdkit.vhd.image import VhdImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from vhdkit.chain.chain import Chain
    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image

ALL_KINDS = [Kind.DYNAMIC, Kind.FIXED, Kind.RAW]
WINDOW = 4096


def bounded(chain: Chain, max_bytes: int) -> ChainIndex:
    """Give a chain an index with so much memory."""
    chain._index = ChainIndex(chain.layers, max_bytes)  # noqa: SLF001 - the bound is a constant for users
    return chain._index  # noqa: SLF001


@settings(deadline=None, max_examples=60)
@given(programs(kinds=ALL_KINDS, shorter=True), st.integers(1, 20_000), st.integers(1, 40), st.data())
def test_reads_of_every_size_are_right_in_any_memory(
    program: Program, max_bytes: int, few: int, data: st.DataObject
) -> None:
    model = run(program)
    view = model.view().tobytes()
    with pytest.MonkeyPatch.context() as patch, files(model) as paths, open_files(model, paths) as chain:
        patch.setattr(index, "WINDOW_BYTES", WINDOW)
        patch.setattr(index, "_FEW_STRETCHES", few)
        bounded(chain, max_bytes)
        for offset, length in data.draw(st.lists(ranges(chain.size), min_size=1, max_size=12)):
            assert chain.read(offset, length) == view[offset : offset + length]


@settings(deadline=None, max_examples=25)
@given(programs(kinds=[Kind.DYNAMIC], shorter=True), st.data())
def test_a_write_through_the_chain_is_read_back_through_every_map(program: Program, data: st.DataObject) -> None:
    model = run(program)
    with (
        pytest.MonkeyPatch.context() as patch,
        files(model) as paths,
        open_files(model, paths, writable=True) as chain,
    ):
        patch.setattr(index, "WINDOW_BYTES", WINDOW)
        mirror = bytearray(model.view().tobytes())
        assert chain.read(0, chain.size) == mirror
        for number in range(data.draw(st.integers(1, 6))):
            offset = data.draw(st.integers(0, chain.size - 1))
            length = data.draw(st.integers(1, min(chain.size - offset, 5 * SECTOR)))
            piece = bytes([number + 1]) * length
            chain.write(offset, piece)
            mirror[offset : offset + length] = piece
            low, count = data.draw(ranges(chain.size))
            assert chain.read(low, count) == mirror[low : low + count]
        assert chain.read(0, chain.size) == mirror


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Chain]:
    """A writable child over a base whose sectors alternate between the two, one block of 4 KiB after the other."""
    base, leaf = str(tmp_path / "base.vhd"), str(tmp_path / "leaf.avhd")
    create_image(base, size=256 * SECTOR, block_size=WINDOW)
    with open_chain(base, writable=True) as chain:
        chain.write(0, bytes([1]) * chain.size)
    create_image(leaf, parent=base)
    with open_chain(leaf, writable=True) as chain:
        for sector in range(0, 256, 2):
            chain.write(sector * SECTOR, bytes([2]) * SECTOR)
        yield chain


def test_a_write_that_goes_past_the_chain_drops_the_maps(child: Chain) -> None:
    before = child.read(SECTOR, SECTOR)
    assert isinstance(child.leaf, VhdImage)
    child.leaf.write(SECTOR, bytes([3]) * SECTOR)
    assert (before, child.read(SECTOR, SECTOR)) == (bytes([1]) * SECTOR, bytes([3]) * SECTOR)


def test_a_failed_write_leaves_no_map_behind(child: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    child.read(0, child.size)
    monkeypatch.setattr(type(child.leaf.storage), "sync", _fail)
    with pytest.raises(OSError, match="injected"):
        child.write(SECTOR, bytes([3]) * SECTOR, sync=True)
    with open_chain(child.path, lock=False) as fresh:
        assert child.read(0, child.size) == fresh.read(0, fresh.size)


def _fail(_: object) -> None:
    raise OSError(errno.EIO, "injected")


def test_memory_stays_within_its_bound_however_scattered_the_disk(
    child: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "WINDOW_BYTES", WINDOW)
    kept = bounded(child, 5 * (index._MAP_BYTES + 8 * index._STRETCH_BYTES))  # noqa: SLF001 - five of the 32 maps
    for sector in range(256):
        child.read(sector * SECTOR, SECTOR)
    assert list(kept._maps) == [27, 28, 29, 30, 31]  # noqa: SLF001 - the most recently used
    child.read(27 * WINDOW, 1)
    child.read(0, 1)
    assert list(kept._maps) == [29, 30, 31, 27, 0]  # noqa: SLF001


def test_threads_may_read_one_chain_at_once(child: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WINDOW_BYTES", WINDOW)
    bounded(child, 3 * (index._MAP_BYTES + 8 * index._STRETCH_BYTES))  # noqa: SLF001 - maps come and go all the time
    whole = b"".join(bytes([2 - sector % 2]) * SECTOR for sector in range(256))

    def read(seed: int) -> int:
        place = random.Random(seed)
        wrong = 0
        for _ in range(300):
            offset, length = place.randrange(len(whole)), place.randrange(1, 3 * WINDOW)
            wrong += child.read(offset, length) != whole[offset : offset + length]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(read, range(8))) == 0


def test_threads_that_come_to_a_window_at_once_have_it_worked_out_once(
    child: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[int] = []
    both = Barrier(2)
    real = resolve

    def counted(layers: Sequence[Image], start: int, stop: int) -> Extents:
        resolved.append(start)
        # Two threads that work it out meet here; one alone goes on.
        with suppress(BrokenBarrierError):
            both.wait(0.2)
        return real(layers, start, stop)

    monkeypatch.setattr(index, "resolve", counted)
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: child.read(0, child.size), range(2)))
    assert (resolved, len(found)) == ([0], 1)


def test_small_reads_make_one_call_each_at_any_depth(child: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    child.read(0, child.size)
    calls: list[int] = []
    real = LocalStorage.read_into

    def counted(storage: LocalStorage, offset: int, buffer: Buffer) -> int:
        calls.append(offset)
        return real(storage, offset, buffer)

    monkeypatch.setattr(LocalStorage, "read_into", counted)
    for sector in range(64):
        child.read(sector * SECTOR + 7, 100)
    assert len(calls) == 64


def test_a_map_that_is_worked_out_during_a_write_has_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of before the write was kept, and the write never read."""
    create_image(tmp_path / "base.vhd", size=1 << 20)
    is_resolved, is_written = Event(), Event()

    def slow(layers: Sequence[Image], start: int, stop: int) -> Extents:
        found = resolve(layers, start, stop)
        is_resolved.set()
        # The write waits for the map, and this for nothing that could come.
        is_written.wait(0.5)
        return found

    with open_chain(tmp_path / "base.vhd", writable=True) as chain:
        monkeypatch.setattr(index, "resolve", slow)
        reader = Thread(target=chain.read, args=(0, 512))
        reader.start()
        is_resolved.wait()
        chain.write(0, b"x" * 512)
        is_written.set()
        reader.join()
        assert chain.read(0, 512) == b"x" * 512
