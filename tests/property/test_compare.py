"""Two views are compared as their bytes are, and only what can differ is read."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdkit
from tests.model import Kind, Program
from tests.plainvhd import SECTOR
from tests.property.test_reading import files, open_files, run
from tests.strategies import programs
from vhdkit.chain import compare as comparing
from vhdkit.chain.compare import first_difference
from vhdkit.chain.disk_view import DiskView
from vhdkit.storage.local_file import LocalStorage

ALL_KINDS = [Kind.DYNAMIC, Kind.FIXED, Kind.RAW]
MIB = 1 << 20


def slow_first_difference(one: bytes, other: bytes) -> int | None:
    size = max(len(one), len(other))
    one, other = one.ljust(size, b"\0"), other.ljust(size, b"\0")
    return next((at for at in range(size) if one[at] != other[at]), None)


@settings(deadline=None, max_examples=40)
@given(programs(kinds=ALL_KINDS, shorter=True), programs(kinds=ALL_KINDS, shorter=True), st.integers(1, 9))
def test_views_of_different_files_are_compared_as_their_bytes(one: Program, other: Program, sectors: int) -> None:
    a, b = run(one), run(other)
    with pytest.MonkeyPatch.context() as patch, files(a) as paths_a, files(b) as paths_b:
        patch.setattr(comparing, "CELL_BYTES", sectors * SECTOR)
        with open_files(a, paths_a) as chain_a, open_files(b, paths_b) as chain_b:
            expected = slow_first_difference(a.view().tobytes(), b.view().tobytes())
            assert first_difference(chain_a, chain_b) == expected


@settings(deadline=None, max_examples=40)
@given(programs(kinds=ALL_KINDS, shorter=True), st.integers(1, 9), st.integers(0, 4))
def test_a_view_and_one_below_it_are_compared_as_their_bytes(program: Program, sectors: int, depth: int) -> None:
    model = run(program)
    with pytest.MonkeyPatch.context() as patch, files(model) as paths:
        patch.setattr(comparing, "CELL_BYTES", sectors * SECTOR)
        depth = min(depth, len(model.layers) - 1)
        with open_files(model, paths) as chain:
            expected = slow_first_difference(model.view().tobytes(), model.view(depth).tobytes())
            assert first_difference(chain, DiskView(chain.layers[depth:])) == expected


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the bytes that are read of each file, by its name."""
    counts: dict[str, int] = {}
    one_at_a_time = threading.Lock()  # two threads read, and neither may overwrite the other's sum
    read_into = LocalStorage.read_into

    def counted(self: LocalStorage, offset: int, buffer: bytearray) -> int:
        got = read_into(self, offset, buffer)
        with one_at_a_time:
            counts[Path(self.path).name] = counts.get(Path(self.path).name, 0) + got
        return got

    monkeypatch.setattr(LocalStorage, "read_into", counted)
    return counts


def filled(path: Path, *, parent: Path | None = None, blocks: range) -> Path:
    if parent is None:
        vhdkit.create_image(path, size=64 * MIB)
    else:
        vhdkit.create_image(path, parent=parent)
    with vhdkit.open_chain(path, writable=True) as chain:
        for block in blocks:
            chain.write(block * 2 * MIB, path.name[:1].encode() * MIB)
    return path


def test_a_file_that_both_show_at_one_place_is_not_read(tmp_path: Path, bytes_read: dict[str, int]) -> None:
    base = filled(tmp_path / "base.vhd", blocks=range(16))
    child = filled(tmp_path / "child.vhd", parent=base, blocks=range(3, 4))
    bytes_read.clear()
    assert vhdkit.compare(child, base).first_difference == 6 * MIB
    # All of the block that differs, the rest by tables and bitmaps.
    assert bytes_read["base.vhd"] < 3 * MIB


def test_bytes_behind_the_end_of_a_shared_file_are_an_error_though_both_have_them(tmp_path: Path) -> None:
    base = filled(tmp_path / "base.vhd", blocks=range(4))
    child = filled(tmp_path / "child.vhd", parent=base, blocks=range(0))
    content = base.read_bytes()
    base.write_bytes(content[: -MIB - 512] + content[-512:])
    with pytest.raises(vhdkit.CorruptImageError):
        vhdkit.compare(child, base)


def test_a_disk_that_holds_nothing_somewhere_is_not_read_there(tmp_path: Path, bytes_read: dict[str, int]) -> None:
    one = filled(tmp_path / "one.vhd", blocks=range(0, 16, 2))
    vhdkit.convert(one, tmp_path / "one.raw", output_format="raw")
    with vhdkit.open_chain(one, writable=True) as chain:
        for block in range(1, 16, 2):
            chain.write(block * 2 * MIB, bytes(2 * MIB))
    bytes_read.clear()
    assert vhdkit.compare(one, tmp_path / "one.raw", format_b="raw").equal
    assert bytes_read["one.raw"] <= 8 * MIB
    assert bytes_read["one.vhd"] >= 24 * MIB


def test_a_byte_that_differs_is_found_wherever_it_is(tmp_path: Path) -> None:
    one = filled(tmp_path / "one.vhd", blocks=range(0, 16, 2))
    other = tmp_path / "other.vhd"
    for offset in (0, 1, MIB - 1, MIB, 2 * MIB, 3 * MIB + 5, 28 * MIB + 77, 64 * MIB - 1):
        shutil.copyfile(one, other)
        with vhdkit.open_chain(other, writable=True) as chain:
            old = chain.read(offset, 1)[0]
            chain.write(offset, bytes([old ^ 1]))
        assert vhdkit.compare(one, other).first_difference == offset
        assert vhdkit.compare(other, one).first_difference == offset


def test_the_first_of_many_differences_is_found(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    one = tmp_path / "one.raw"
    one.write_bytes(random.bytes(8 * MIB))
    for _ in range(5):
        content = bytearray(one.read_bytes())
        places = sorted(random.integers(0, len(content), 30).tolist())
        for place in places:
            content[place] ^= 0xFF
        changed = [at for at in places if places.count(at) % 2]
        (tmp_path / "other.raw").write_bytes(content)
        assert vhdkit.compare(one, tmp_path / "other.raw").first_difference == changed[0]
