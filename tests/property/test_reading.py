"""Chains of files, made by the tests' own writer, read and written through vhdkit: all as the model says."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model import Create, Kind, ModelChain, Program, Snapshot, Write, write_files
from tests.plainbuild import build
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, SECTOR, flat, parse
from tests.strategies import image_specs, programs, writes
from vhdkit.chain import resolve_layers as resolve_module
from vhdkit.chain.chain import Chain, open_chain
from vhdkit.disk import extents
from vhdkit.errors import ParentNotFoundError, ReadOnlyImageError
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plainbuild import ImageSpec

ALL_KINDS = [Kind.DYNAMIC, Kind.FIXED, Kind.RAW]


@contextmanager
def files(model: ModelChain, spec_change: dict[str, object] | None = None) -> Iterator[list[Path]]:
    """Write a model's layers into a folder of their own; yield the paths, leaf first."""

    def vary(spec: ImageSpec) -> ImageSpec:
        return replace(spec, **(spec_change or {}))  # type: ignore[arg-type] # any field may be changed

    with TemporaryDirectory() as folder:
        yield write_files(model, Path(folder), vary)


def run(program: Program) -> ModelChain:
    """Run a program; a raw file alone is no chain, so that one gets a child."""
    model = ModelChain.run(program)
    if model.layers[0].kind is Kind.RAW:
        model.apply(Snapshot())
    return model


def open_files(model: ModelChain, paths: list[Path], *, writable: bool = False) -> Chain:
    is_raw = model.layers[-1].kind is Kind.RAW
    return open_chain(str(paths[0]), writable=writable, parent=str(paths[-1]) if is_raw else None)


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[int, int]:
    """Offset and length, aligned or not, at the ends, behind them, empty."""
    edge = st.sampled_from([0, 1, SECTOR, size // 2, size - SECTOR, size - 1, size]) | st.integers(0, size)
    offset = draw(edge) + draw(st.sampled_from([0, 0, 0, 1, SECTOR]))
    length = draw(st.sampled_from([0, 1, SECTOR - 1, SECTOR, SECTOR + 1, 9 * SECTOR, size]) | st.integers(0, size))
    return offset, length


layouts = st.fixed_dictionaries(
    {
        "bits_past_end": st.booleans(),
        "data_alignment": st.sampled_from([SECTOR, 4096]),
        "gap": st.sampled_from([0, 5 * SECTOR]),
        "extra_entries": st.sampled_from([0, 3]),
        "locators_first": st.booleans(),
        "creator_app": st.sampled_from([b"win ", b"tap\0", b"qemu"]),
    }
)


@settings(deadline=None, max_examples=50)
@given(programs(kinds=ALL_KINDS, shorter=True), layouts, st.data())
def test_a_chain_reads_as_its_model(program: Program, layout: dict[str, object], data: st.DataObject) -> None:
    model = run(program)
    view = model.view().tobytes()
    with files(model, layout) as paths, open_files(model, paths) as chain:
        assert [layer.path for layer in chain.layers] == [str(path.resolve()) for path in paths]
        assert chain.size == len(view)
        assert chain.read(0, chain.size) == view
        for offset, length in data.draw(st.lists(ranges(chain.size), min_size=1, max_size=5)):
            assert chain.read(offset, length) == view[offset : offset + length]
            buffer = bytearray(b"\xdd" * length)
            count = chain.read_into(offset, buffer)
            assert count == len(view[offset : offset + length])
            assert buffer == view[offset : offset + length].ljust(length, b"\xdd")


@settings(deadline=None, max_examples=50)
@given(programs(kinds=ALL_KINDS, shorter=True), st.data())
def test_every_depth_of_a_chain_reads_as_that_of_its_model(program: Program, data: st.DataObject) -> None:
    model = run(program)
    kinds = [layer.kind for layer in model.layers]
    depth = data.draw(st.integers(0, len(kinds) - (2 if kinds[-1] is Kind.RAW else 1)))
    with files(model) as paths, open_files(model, paths[depth:]) as chain:
        assert chain.read(0, chain.size) == model.view(depth).tobytes()


@settings(deadline=None, max_examples=50)
@given(programs(kinds=ALL_KINDS, shorter=True), st.data())
def test_extents_lead_to_the_bytes_of_the_model(program: Program, data: st.DataObject) -> None:
    model = run(program)
    view, sources = model.view(), model.sources()
    with files(model) as paths, open_files(model, paths) as chain:
        raw = [path.read_bytes() for path in paths]
        offset, length = data.draw(ranges(chain.size))
        position = offset
        for item in (item for window in chain.extents(offset, length) for item in window):
            assert item.start == position
            position += item.length
            expected = view[item.start : position].tobytes()
            held = sources[item.start // SECTOR : -(-position // SECTOR)]
            if item.kind is extents.Kind.DATA:
                assert raw[item.depth][item.file_offset :][: item.length] == expected
                assert (held == item.depth).all()
            else:
                assert item.kind is extents.Kind.ZERO
                assert expected == bytes(item.length)
                assert (held == -1).all()
        assert position == max(offset, min(offset + length, chain.size))


@settings(deadline=None, max_examples=25)
@given(programs(kinds=ALL_KINDS, shorter=True), st.integers(1, 200), st.integers(1, 64))
def test_however_small_the_windows_the_same_is_read(program: Program, sectors: int, window: int) -> None:
    model = run(program)
    with pytest.MonkeyPatch.context() as patch, files(model) as paths, open_files(model, paths) as chain:
        whole = [item for extents in chain.extents() for item in extents]
        patch.setattr(resolve_module, "_WINDOW_SECTORS", sectors)
        patch.setattr(resolve_module, "_WINDOW_BYTES", window * SECTOR)
        assert chain.read(0, chain.size) == model.view().tobytes()
        cut = [item for extents in chain.extents() for item in extents]
        assert sum(item.length for item in cut) == sum(item.length for item in whole) == chain.size
        assert {item.start for item in whole} <= {item.start for item in cut}


@settings(deadline=None, max_examples=50)
@given(programs(kinds=ALL_KINDS, shorter=True), st.data())
def test_a_stream_is_the_view_as_a_file(program: Program, data: st.DataObject) -> None:
    model = run(program)
    plain = io.BytesIO(model.view().tobytes())
    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("read"), st.integers(-1, 5000)),
                st.tuples(st.just("seek"), st.integers(0, 9000), st.just(io.SEEK_SET)),
                st.tuples(st.just("seek"), st.integers(0, 9000), st.just(io.SEEK_END)),
                st.tuples(st.just("seek"), st.integers(0, 900), st.just(io.SEEK_CUR)),
            ),
            max_size=8,
        )
    )
    with files(model) as paths, open_files(model, paths) as chain:
        stream = chain.open_stream()
        for step in steps:
            if step[0] == "read":
                assert stream.read(step[1]) == plain.read(step[1])
            else:
                assert stream.seek(*step[1:]) == plain.seek(*step[1:])
            assert stream.tell() == plain.tell()
        stream.close()
        assert chain.read(0, 1) == model.read(0, 1)


@settings(deadline=None, max_examples=50)
@given(image_specs(disk_types=[FIXED, DYNAMIC]), st.data())
def test_a_file_of_any_layout_reads_as_the_plain_reader_reads_it(spec: ImageSpec, data: st.DataObject) -> None:
    raw = build(spec)
    view = flat([parse(raw)]).tobytes()
    with open_chain("/a.vhd", folder=MemoryFolder({"/a.vhd": raw})) as chain:
        offset, length = data.draw(ranges(chain.size))
        assert chain.read(offset, length) == view[offset : offset + length]
        assert chain.read(0, chain.size) == view


@settings(deadline=None, max_examples=50)
@given(image_specs(disk_types=[DIFFERENCING]))
def test_a_child_is_not_read_without_its_parent(spec: ImageSpec) -> None:
    with pytest.raises(ParentNotFoundError):
        open_chain("/a.vhd", folder=MemoryFolder({"/a.vhd": build(spec)}))


@settings(deadline=None, max_examples=50)
@given(programs(kinds=ALL_KINDS, shorter=True), layouts, st.data())
def test_writing_changes_the_leaf_as_the_model_says_and_keeps_every_file_valid(
    program: Program, layout: dict[str, object], data: st.DataObject
) -> None:
    model = run(program)
    with files(model, layout) as paths:
        below = [path.read_bytes() for path in paths[1:]]
        with open_files(model, paths, writable=True) as chain:
            for write in data.draw(st.lists(writes(model.shapes[0]), min_size=1, max_size=4)):
                chain.write(write.offset, write.data, sync=data.draw(st.booleans()))
                model.apply(write)
            assert chain.read(0, chain.size) == model.view().tobytes()
        assert [path.read_bytes() for path in paths[1:]] == below
        assert validate(paths[0], raw_parent=True) == []
        with open_files(model, paths) as chain:
            assert chain.read(0, chain.size) == model.view().tobytes()
        layers = [path.read_bytes() if path.suffix == ".img" else parse(path) for path in paths]
        assert np.array_equal(flat(layers), model.view())


def two_layers() -> ModelChain:
    return ModelChain.run(
        (
            Create(kind=Kind.DYNAMIC, sector_count=40),
            Write(offset=0, length=40 * SECTOR, fill=7),
            Snapshot(),
            Write(offset=3 * SECTOR, length=SECTOR, fill=9),
        )
    )


def test_a_write_of_nothing_changes_nothing() -> None:
    model = two_layers()
    with files(model) as paths:
        before = paths[0].read_bytes()
        with open_files(model, paths, writable=True) as chain:
            for offset in (0, 1, SECTOR, chain.size - 1, chain.size):
                chain.write(offset, b"")
        assert paths[0].read_bytes() == before


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (40 * SECTOR, 1), (40 * SECTOR - 1, 2), (0, 41 * SECTOR)])
def test_a_write_that_leaves_the_disk_is_refused_and_changes_nothing(offset: int, length: int) -> None:
    model = two_layers()
    with files(model) as paths:
        before = paths[0].read_bytes()
        with open_files(model, paths, writable=True) as chain, pytest.raises(ValueError, match="outside"):
            chain.write(offset, bytes(length))
        assert paths[0].read_bytes() == before


def test_a_chain_opened_for_reading_is_not_written() -> None:
    model = two_layers()
    with files(model) as paths, open_files(model, paths) as chain, pytest.raises(ReadOnlyImageError):
        chain.write(0, b"x")


def test_a_negative_offset_is_no_position() -> None:
    model = two_layers()
    with files(model) as paths, open_files(model, paths) as chain:
        with pytest.raises(ValueError, match="negative"):
            chain.read(-1, 5)
        with pytest.raises(ValueError, match="negative"):
            chain.read_into(-SECTOR, bytearray(5))
        with pytest.raises(ValueError, match="-1"):
            chain.open_stream().seek(-1)


def test_a_buffer_may_be_of_any_shape() -> None:
    model = two_layers()
    with files(model) as paths, open_files(model, paths) as chain:
        array = np.zeros((4, 300), ">u4")
        assert chain.read_into(100, array.data) == array.nbytes
        assert array.tobytes() == model.read(100, array.nbytes)
        chain.read_into(100, memoryview(bytearray(0)))


def test_a_closed_stream_is_of_no_use_and_the_chain_still_is() -> None:
    model = two_layers()
    with files(model) as paths, open_files(model, paths) as chain:
        with chain.open_stream() as stream:
            assert (stream.readable(), stream.seekable(), stream.writable()) == (True, True, False)
        for use in (stream.tell, lambda: stream.seek(0), lambda: stream.read(1)):
            with pytest.raises(ValueError, match="closed"):
                use()
        assert chain.read(0, 9) == model.read(0, 9)


def test_a_short_layer_hides_what_lies_below_its_end_however_it_is_read() -> None:
    model = ModelChain.run(
        (
            Create(kind=Kind.FIXED, sector_count=20),
            Write(offset=0, length=20 * SECTOR, fill=7),
            Snapshot(sector_count=10),
            Snapshot(sector_count=30),
        )
    )
    with files(model) as paths, open_files(model, paths) as chain:
        assert chain.read(9 * SECTOR, 5 * SECTOR) == model.read(9 * SECTOR, SECTOR) + bytes(4 * SECTOR)
        assert [tuple(item)[:4] for window in chain.extents() for item in window] == [
            (0, 10 * SECTOR, extents.Kind.DATA, 2),
            (10 * SECTOR, 20 * SECTOR, extents.Kind.ZERO, 1),
        ]


def test_a_raw_base_whose_last_sector_is_cut_reads_as_if_it_were_whole() -> None:
    model = ModelChain.run((Create(kind=Kind.RAW, sector_count=9), Write(offset=0, length=4300, fill=3), Snapshot()))
    with files(model) as paths:
        paths[1].write_bytes(paths[1].read_bytes()[:4300])
        with open_files(model, paths) as chain:
            assert chain.read(0, chain.size) == model.view().tobytes()
