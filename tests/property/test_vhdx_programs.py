"""The laws of reading hold for VHDX files of the oracle's writer: sectors of both sizes, logs replayed or not."""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vhdkit
from tests.model import SMALL_BLOCK, Kind, ModelChain, Program
from tests.plainvhd import flat, parse
from tests.property.test_stacked import sectors
from tests.strategies import programs
from tests.vhdx_chains import view, written
from vhdkit.chain import index
from vhdkit.chain import resolve_layers as resolve_module
from vhdkit.chain.chain import Chain, open_chain
from vhdkit.chain.check import check
from vhdkit.chain.compare import first_difference
from vhdkit.chain.disk_view import DiskView
from vhdkit.chain.index import ChainIndex
from vhdkit.chain.resolve_layers import resolve
from vhdkit.chain.stacked import resolve_stacked, stack_of
from vhdkit.disk import extents
from vhdkit.findings import Level
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = pytest.mark.parametrize("sector", [512, 4096])
# Disks of one block of 1 MiB or some.
PROGRAMS = programs(
    kinds=[Kind.DYNAMIC, Kind.FIXED],
    block_sizes=(SMALL_BLOCK, 512 * 1024),
    max_layers=4,
    max_operations=8,
    shorter=True,
)
DIRTY = st.sets(st.integers(0, 5), max_size=3)
few = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@contextmanager
def opened(program: Program, sector: int, dirty: set[int]) -> Iterator[tuple[ModelChain, Chain]]:
    """Open a program's chain; no byte of any of its files changes."""
    model = ModelChain.run(program)
    files = written(model, sector, dirty)
    folder = MemoryFolder(files)
    with open_chain(next(iter(files)), folder=folder) as chain:
        assert [layer.path for layer in chain.layers] == list(files)
        yield model, chain
    assert {path: bytes(folder[path].content) for path in files} == files


@st.composite
def ranges(draw: st.DrawFn, size: int, sector: int) -> tuple[int, int]:
    """Offset and length, aligned or not, at the ends, behind them, empty."""
    edge = st.sampled_from([0, 1, sector, size // 2, size - sector, size - 1, size]) | st.integers(0, size)
    length = st.sampled_from([0, 1, sector - 1, sector, sector + 1, 9 * sector, size]) | st.integers(0, size)
    return draw(edge), draw(length)


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY, data=st.data())
def test_a_chain_reads_as_its_model_at_every_depth(
    sector: int, program: Program, dirty: set[int], data: st.DataObject
) -> None:
    with opened(program, sector, dirty) as (model, chain):
        expected = view(model, sector)
        assert chain.size == len(expected)
        assert chain.read(0, chain.size) == expected
        for offset, length in data.draw(st.lists(ranges(chain.size, sector), min_size=1, max_size=5)):
            assert chain.read(offset, length) == expected[offset : offset + length]
            buffer = bytearray(b"\xdd" * length)
            count = chain.read_into(offset, buffer)
            assert count == len(expected[offset : offset + length])
            assert buffer == expected[offset : offset + length].ljust(length, b"\xdd")
        depth = data.draw(st.integers(0, len(model.layers) - 1))
        whole = DiskView(chain.layers[depth:])
        assert first_difference(chain, whole) == _first_difference(expected, view(model, sector, depth))


def _first_difference(one: bytes, other: bytes) -> int | None:
    size = max(len(one), len(other))
    pair = [np.frombuffer(each.ljust(size, b"\0"), np.uint8) for each in (one, other)]
    places = np.flatnonzero(pair[0] != pair[1])
    return int(places[0]) if len(places) else None


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY, data=st.data())
def test_extents_lead_to_the_bytes_of_the_model(
    sector: int, program: Program, dirty: set[int], data: st.DataObject
) -> None:
    with opened(program, sector, dirty) as (model, chain):
        expected, sources = view(model, sector), model.sources()
        base = len(model.layers) - 1
        files = list(written(model, sector).values())
        offset, length = data.draw(ranges(chain.size, sector))
        position = offset
        for item in (item for window in chain.extents(offset, length) for item in window):
            assert item.start == position
            position += item.length
            held = sources[item.start // sector : -(-position // sector)]
            if item.kind is extents.Kind.DATA:
                at = item.file_offset
                assert files[item.depth][at : at + item.length] == expected[item.start : position]
                # A block of a base is there as a whole.
                assert ((held == item.depth) | ((held == -1) & (item.depth == base))).all()
            else:
                assert item.kind is extents.Kind.ZERO
                assert expected[item.start : position] == bytes(item.length)
                assert (held == -1).all()
        assert position == max(offset, min(offset + length, chain.size))


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY, window=st.integers(1, 200), max_bytes=st.integers(1, 20_000), data=st.data())
def test_however_small_the_windows_and_the_index_the_same_is_read(
    sector: int, program: Program, dirty: set[int], window: int, max_bytes: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch, opened(program, sector, dirty) as (model, chain):
        whole = [item for extents in chain.extents() for item in extents]
        patch.setattr(resolve_module, "_WINDOW_SECTORS", window)
        patch.setattr(resolve_module, "_WINDOW_BYTES", 64 * window * sector)
        patch.setattr(index, "WINDOW_BYTES", 64 * sector)
        chain._index = ChainIndex(chain.layers, max_bytes)  # noqa: SLF001 - the bound is a constant for users
        cut = [item for extents in chain.extents() for item in extents]
        assert sum(item.length for item in cut) == sum(item.length for item in whole) == chain.size
        expected = view(model, sector)
        for offset, length in data.draw(st.lists(ranges(min(chain.size, 300 * sector), sector), max_size=6)):
            assert chain.read(offset, length) == expected[offset : offset + length]


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY, data=st.data())
def test_layers_at_once_are_layers_one_by_one(
    sector: int, program: Program, dirty: set[int], data: st.DataObject
) -> None:
    with opened(program, sector, dirty) as (_, chain):
        edges = st.integers(0, chain.size // sector)
        start, stop = sorted(sector * data.draw(edges) for _ in range(2))
        images = stack_of(chain.layers, stop)
        assert tuple(images) == chain.layers[: len(images)]
        if images and start < stop:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(resolve_module, "_STACKED", 2000)
                one_by_one = resolve(images, start, stop)
            assert sectors(resolve_stacked(images, start, stop)) == sectors(one_by_one)


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY, data=st.data())
def test_a_stream_is_the_view_as_a_file(sector: int, program: Program, dirty: set[int], data: st.DataObject) -> None:
    with opened(program, sector, dirty) as (model, chain):
        plain, stream = io.BytesIO(view(model, sector)), chain.open_stream()
        for seek, length in data.draw(
            st.lists(st.tuples(st.integers(0, chain.size + 9), st.integers(-1, 9000)), max_size=6)
        ):
            assert stream.seek(seek) == plain.seek(seek)
            assert stream.read(length) == plain.read(length)
            assert stream.tell() == plain.tell()


@BOTH
@few
@given(program=PROGRAMS, dirty=DIRTY)
def test_what_is_copied_hashed_and_checked_is_what_is_read(sector: int, program: Program, dirty: set[int]) -> None:
    model = ModelChain.run(program)
    files, expected = written(model, sector, dirty), view(model, sector)
    with TemporaryDirectory() as directory:
        paths = [Path(directory, Path(name).name) for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content)
        leaf, new = paths[0], Path(directory, "new.raw")
        vhdkit.convert(leaf, new, output_format="raw")
        assert new.read_bytes() == expected
        (hashed,) = vhdkit.hash_image(leaf)
        assert hashed.digest == hashlib.sha256(expected).hexdigest()
        report = check(leaf, chain=True, deep=True)
        assert [str(each) for each in report.findings if each.level is Level.ERROR] == []
        assert report.exit_code == 0
        if sector == 512:
            kinds: tuple[tuple[str, Any], ...] = (("n.vhd", "dynamic"), ("f.vhd", "fixed"))
            for name, write in kinds:
                vhdkit.convert(leaf, Path(directory, name), output_format=write)
                assert flat([parse(Path(directory, name).read_bytes())]).tobytes() == expected
        assert [path.read_bytes() for path in paths] == list(files.values())
