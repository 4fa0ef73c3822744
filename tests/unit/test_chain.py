"""A chain as one disk: what links it accepts, what it reads, what it writes, what it leaves open (guarantees.md)."""

from __future__ import annotations

import errno
import io
import os
import time
from array import array
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import DIFFERENCING, FIXED, SECTOR, flat, parse
from vhdkit import testing
from vhdkit.chain.chain import MAX_LAYERS, open_chain
from vhdkit.corruption import Corruption
from vhdkit.errors import (
    ChainError,
    ChainLoopError,
    CorruptImageError,
    ParentMismatchError,
    ParentNotFoundError,
    ReadOnlyImageError,
    UnsupportedImageError,
    VhdError,
)
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.chain.chain import Chain
    from vhdkit.chain.stream import BufferedReader, BufferedStream, ChainStream
    from vhdkit.findings import Rule
    from vhdkit.storage.protocols import Storage

    Stream = ChainStream | BufferedReader | BufferedStream

BLOCK = 8 * SECTOR
SIZE = 4 * BLOCK
EPOCH = 946_684_800
BASE = ImageSpec(size=SIZE, block_size=BLOCK)
CHILD = replace(BASE, disk_type=DIFFERENCING)


def ident(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


def data(numbers: Sequence[int], fill: int) -> dict[int, bytes]:
    return {number: bytes([fill, number]) * (SECTOR // 2) for number in numbers}


def child_of(number: int, name: str, **fields: Any) -> ImageSpec:
    """Describe a child that finds the parent of that id and name beside it."""
    return replace(CHILD, parent_id=ident(number), locators=(locator(0, b"W2ru", f".\\{name}"),), **fields)


def put(folder: Path, **files: ImageSpec | bytes) -> Path:
    """Write files, each with the extension .vhd; return the first one's path."""
    paths = [folder / f"{name}.vhd" for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else build(content))
    return paths[0]


def expected(*paths: str | Path) -> bytes:
    return flat([parse(Path(path)) for path in paths]).tobytes()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three layers, their sectors interleaved: leaf.vhd over middle.vhd over base.vhd."""
    return put(
        tmp_path,
        leaf=child_of(2, "middle.vhd", unique_id=ident(3), sectors=data([0, 5, 9, 31], 3)),
        middle=child_of(1, "base.vhd", unique_id=ident(2), sectors=data([0, 1, 5, 6, 20], 2)),
        base=replace(BASE, unique_id=ident(1), sectors=data(range(0, 24, 2), 1)),
    )


def layers_of_three(leaf: Path) -> list[Path]:
    return [leaf, leaf.with_name("middle.vhd"), leaf.with_name("base.vhd")]


# Loops


def test_two_images_that_are_each_others_parent_are_a_loop(tmp_path: Path) -> None:
    first = put(tmp_path, a=child_of(2, "b.vhd", unique_id=ident(1)), b=child_of(1, "a.vhd", unique_id=ident(2)))
    with pytest.raises(ChainLoopError) as caught:
        open_chain(str(first))
    assert caught.value.windows_code == 0xC03A0018
    assert "a.vhd" in str(caught.value)


def test_a_loop_that_the_leaf_is_no_part_of_is_a_loop(tmp_path: Path) -> None:
    leaf = put(
        tmp_path,
        leaf=child_of(1, "a.vhd", unique_id=ident(3)),
        a=child_of(2, "b.vhd", unique_id=ident(1)),
        b=child_of(1, "a.vhd", unique_id=ident(2)),
    )
    with pytest.raises(ChainLoopError):
        open_chain(str(leaf))


def test_an_image_that_names_itself_is_a_loop(tmp_path: Path) -> None:
    path = put(tmp_path, a=child_of(1, "a.vhd", unique_id=ident(1)))
    with pytest.raises(ChainLoopError):
        open_chain(str(path))


def test_an_image_that_is_given_as_its_own_parent_is_a_loop(tmp_path: Path) -> None:
    path = put(tmp_path, a=child_of(1, "gone.vhd", unique_id=ident(1)))
    with pytest.raises(ChainLoopError):
        open_chain(str(path), parent=str(path))


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_another_name_of_the_same_file_is_a_loop(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    path = put(tmp_path, a=child_of(1, "b.vhd", unique_id=ident(1)))
    link(tmp_path / "b.vhd", path)
    with pytest.raises(ChainLoopError):
        open_chain(str(path))


def test_a_loop_in_memory_is_a_loop() -> None:
    files = {
        "/a.vhd": build(child_of(2, "b.vhd", unique_id=ident(1))),
        "/b.vhd": build(child_of(1, "a.vhd", unique_id=ident(2))),
    }
    with pytest.raises(ChainLoopError):
        open_chain("/a.vhd", folder=MemoryFolder(files))


def test_a_chain_whose_files_all_have_one_id_reads_with_findings(tmp_path: Path) -> None:
    leaf = put(
        tmp_path,
        leaf=child_of(1, "middle.vhd", unique_id=ident(1), sectors=data([0], 3)),
        middle=child_of(1, "base.vhd", unique_id=ident(1), sectors=data([1], 2)),
        base=replace(BASE, unique_id=ident(1), sectors=data([2], 1)),
    )
    with open_chain(str(leaf)) as chain:
        assert chain.read(0, SIZE) == expected(*layers_of_three(leaf))
        assert [finding.corruption for finding in chain.findings] == [Corruption.PARENT_ID_IS_OWN] * 2


# Deep chains


def deep(count: int) -> dict[str, bytes]:
    """Describe a chain of `count` layers, leaf first, each with one or two sectors of its own."""
    files = {}
    for number in range(count, 0, -1):
        own = data([number % 32, number * 7 % 32], number % 251)
        bottom = replace(BASE, unique_id=ident(1), sectors=own)
        spec = child_of(number - 1, f"{number - 1}.vhd", unique_id=ident(number), sectors=own)
        files[f"{number}.vhd"] = build(spec if number > 1 else bottom)
    return files


def open_files() -> list[str]:
    here = Path("/proc/self/fd")
    if not here.exists():
        pytest.skip("this system does not list a process's open files in /proc")
    found = []
    for entry in here.iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the descriptor that lists the directory
            continue
    return sorted(found)


def test_two_hundred_layers_read_right_soon_and_leave_nothing_open(tmp_path: Path) -> None:
    for name, raw in deep(200).items():
        (tmp_path / name).write_bytes(raw)
    before, started = open_files(), time.process_time()
    with open_chain(str(tmp_path / "200.vhd")) as chain:
        view = chain.read(0, SIZE)
        assert len(open_files()) == len(before) + 200
    took = time.process_time() - started
    assert open_files() == before
    assert view == expected(*(tmp_path / f"{number}.vhd" for number in range(200, 0, -1)))
    assert took < 10


@pytest.fixture
def small_limit() -> Iterator[None]:
    """Lower the soft limit of open files for a test, as macOS has it (256) and more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("small_limit")
def test_a_chain_of_more_layers_than_files_may_be_open_by_default_opens(tmp_path: Path) -> None:
    for name, raw in deep(60).items():
        (tmp_path / name).write_bytes(raw)
    with open_chain(str(tmp_path / "60.vhd")) as chain:
        assert len(chain.layers) == 60


@pytest.mark.thorough
def test_a_chain_may_have_1024_layers_and_no_more(tmp_path: Path) -> None:
    assert MAX_LAYERS == 1024
    files = deep(1100)
    folder = MemoryFolder({f"/{name}": raw for name, raw in files.items()})
    with open_chain("/1024.vhd", folder=folder) as chain:
        assert len(chain.layers) == 1024
        assert chain.read(5 * SECTOR, SECTOR)
    for name in ("/1025.vhd", "/1100.vhd"):
        with pytest.raises(ChainError, match="1024"):
            open_chain(name, folder=folder)
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    before = open_files()
    with pytest.raises(ChainError, match="1024"):
        open_chain(str(tmp_path / "1100.vhd"))
    assert open_files() == before


# Nothing stays open

BAD_TABLE = build(replace(BASE, unique_id=ident(1), sectors=data([0], 1)))
BAD_TABLE = BAD_TABLE[:1536] + b"\x7f" * 4 + BAD_TABLE[1540:]
HALF_WAY: list[tuple[bytes | None, type[Exception]]] = [
    (None, ParentNotFoundError),
    (build(replace(BASE, unique_id=ident(7))), ParentMismatchError),
    (BAD_TABLE, CorruptImageError),
    (b"vhdxfile" + bytes(4096), ChainError),
    (b"nothing" * 500, ChainError),
    (b"", ChainError),
    (build(child_of(3, "leaf.vhd", unique_id=ident(1))), ChainLoopError),
]


@pytest.mark.parametrize(("bottom", "kind"), HALF_WAY)
def test_opening_that_fails_half_way_leaves_nothing_open(
    three: Path, bottom: bytes | None, kind: type[Exception]
) -> None:
    if bottom is None:
        three.with_name("base.vhd").unlink()
    else:
        three.with_name("base.vhd").write_bytes(bottom)
    before = open_files()
    with pytest.raises(kind):
        open_chain(str(three))
    assert open_files() == before


@pytest.mark.parametrize(
    ("bottom", "kind"),
    [
        (BAD_TABLE, CorruptImageError),
        (b"QFI\xfb" + bytes(4096), UnsupportedImageError),
        (b"nothing" * 500, CorruptImageError),
        (build(replace(BASE, unique_id=ident(7))), ParentMismatchError),
        (build(child_of(3, "leaf.vhd", unique_id=ident(7))), ParentMismatchError),
    ],
)
def test_an_explicit_parent_that_fails_is_not_left_open(three: Path, bottom: bytes, kind: type[Exception]) -> None:
    explicit = put(three.parent, explicit=bottom)
    before = open_files()
    with pytest.raises(kind):
        open_chain(str(three), parent=str(explicit))
    three.with_name("base.vhd").unlink()
    if kind is not ParentMismatchError:
        with pytest.raises(kind):
            open_chain(str(three.with_name("middle.vhd")), parent=str(explicit))
    assert open_files() == before


def test_a_leaf_that_cannot_be_written_is_not_left_open(tmp_path: Path) -> None:
    saved = put(tmp_path, saved=replace(BASE, saved_state=1))
    marked = put(tmp_path, marked=BASE)
    marked.chmod(0o444)
    before = open_files()
    for path in (saved, marked):
        with pytest.raises(ReadOnlyImageError):
            open_chain(str(path), writable=True)
    with pytest.raises(VhdError):
        open_chain(str(put(tmp_path, none=b"none" * 400)))
    assert open_files() == before


def test_closing_twice_is_closing_once(three: Path) -> None:
    before = open_files()
    chain = open_chain(str(three))
    chain.close()
    chain.close()
    assert open_files() == before


# What is odd and no reason to refuse


def findings(leaf: Path) -> list[tuple[Rule, str]]:
    with open_chain(str(leaf)) as chain:
        return [(finding.corruption, str(finding)) for finding in chain.findings]


def test_a_chain_without_oddities_has_no_findings(three: Path) -> None:
    assert findings(three) == []


@pytest.mark.parametrize("size", [SIZE - SECTOR, SIZE + BLOCK])
def test_a_parent_of_another_size_is_told_with_both_sizes(tmp_path: Path, size: int) -> None:
    leaf = put(tmp_path, leaf=child_of(1, "base.vhd"), base=replace(BASE, unique_id=ident(1), size=size))
    ((corruption, text),) = findings(leaf)
    assert corruption is Corruption.PARENT_SIZE
    assert str(SIZE) in text
    assert str(size) in text


MTIME, FOOTER_STAMP = 700_000_000, 600_000_000
FITTING = [
    0,
    *(stamp + off for stamp in (MTIME, FOOTER_STAMP) for off in (-3602, -3598, -2, 0, 1, 2, 3599, 3600, 3602)),
]
STRANGE = [1, MTIME - 3, MTIME + 3, MTIME + 3597, MTIME + 3603, MTIME - 3603, FOOTER_STAMP + 7200, 0xFFFFFFFF]


@pytest.mark.parametrize("stored", FITTING + STRANGE)
def test_a_time_stamp_is_doubted_when_it_is_neither_the_files_nor_the_footers(tmp_path: Path, stored: int) -> None:
    leaf = put(
        tmp_path,
        leaf=child_of(1, "base.vhd", parent_timestamp=stored),
        base=replace(BASE, unique_id=ident(1), timestamp=FOOTER_STAMP),
    )
    os.utime(tmp_path / "base.vhd", (EPOCH + MTIME, EPOCH + MTIME))
    wanted = [Corruption.PARENT_TIMESTAMP] if stored in STRANGE else []
    assert [corruption for corruption, _ in findings(leaf)] == wanted


def test_a_doubted_time_stamp_is_told_with_the_ones_it_should_be(tmp_path: Path) -> None:
    leaf = put(
        tmp_path,
        leaf=child_of(1, "base.vhd", parent_timestamp=5),
        base=replace(BASE, unique_id=ident(1), timestamp=86400),
    )
    os.utime(tmp_path / "base.vhd", (EPOCH + 2 * 86400, EPOCH + 2 * 86400))
    ((_, text),) = findings(leaf)
    assert all(day in text for day in ("2000-01-01", "2000-01-02", "2000-01-03"))


@pytest.mark.parametrize("when", [0, -86400, 2**32 + EPOCH + 5])
def test_a_file_time_that_the_format_cannot_hold_is_no_failure(tmp_path: Path, when: int) -> None:
    leaf = put(tmp_path, leaf=child_of(1, "base.vhd", parent_timestamp=5), base=replace(BASE, unique_id=ident(1)))
    os.utime(tmp_path / "base.vhd", (when, when))
    assert len(findings(leaf)) <= 1


# Reading


def test_every_range_reads_as_the_oracle_says(three: Path) -> None:
    view = expected(*layers_of_three(three))
    edges = [0, 1, SECTOR - 1, SECTOR, 5 * SECTOR + 7, BLOCK - 1, BLOCK, BLOCK + SECTOR, SIZE - SECTOR, SIZE - 1, SIZE]
    with open_chain(str(three)) as chain:
        for start in edges:
            for stop in [*edges, SIZE + 3]:
                length = max(0, stop - start)
                assert chain.read(start, length) == view[start:stop], (start, stop)


SIZES = [(4, 2, 4), (4, 2, 3), (2, 4, 4), (4, 4, 1), (3, 1, 2), (1, 2, 3)]


@pytest.mark.parametrize("blocks", SIZES)
@pytest.mark.parametrize("extra", [0, 3 * SECTOR])
@pytest.mark.parametrize("block_size", [BLOCK, 2 * BLOCK, SECTOR])
def test_a_short_layer_hides_what_lies_below_its_end(
    tmp_path: Path, blocks: tuple[int, int, int], extra: int, block_size: int
) -> None:
    upper, middle, lower = (count * BLOCK + extra for count in blocks)
    leaf = put(
        tmp_path,
        leaf=child_of(2, "middle.vhd", unique_id=ident(3), size=upper, sectors=data([1], 3)),
        middle=child_of(1, "base.vhd", unique_id=ident(2), size=middle, block_size=block_size, bits_past_end=True),
        base=replace(BASE, unique_id=ident(1), size=lower, sectors=data(range(lower // SECTOR), 1)),
    )
    with open_chain(str(leaf)) as chain:
        view = chain.read(0, upper)
        assert view == expected(*layers_of_three(leaf))
        assert view[min(upper, middle) :] == bytes(max(0, upper - middle))
        assert chain.size == upper


def test_a_fixed_base_shows_through_up_to_its_end(tmp_path: Path) -> None:
    base = replace(BASE, unique_id=ident(1), disk_type=FIXED, size=3 * SECTOR, sectors=data([0, 1, 2], 1))
    leaf = put(tmp_path, leaf=child_of(1, "base.vhd", sectors=data([1], 2)), base=base)
    with open_chain(str(leaf)) as chain:
        assert chain.read(0, SIZE) == expected(leaf, leaf.with_name("base.vhd"))


def test_reading_far_past_the_end_is_nothing(three: Path) -> None:
    with open_chain(str(three)) as chain:
        for offset in (SIZE, SIZE + 1, SIZE + SECTOR, 1 << 62, 1 << 70):
            assert chain.read(offset, 10) == b""


def test_ranges_that_begin_before_the_disk_are_refused(three: Path) -> None:
    with open_chain(str(three)) as chain:
        for offset, length in ((-1, 1), (-SECTOR, SECTOR), (-SECTOR, 4 * SECTOR), (-1, 0)):
            with pytest.raises(ValueError, match=str(offset)):
                chain.read(offset, length)
            with pytest.raises(ValueError, match=str(offset)):
                chain.read_into(offset, bytearray(length))


def test_extents_of_a_range_that_begins_before_the_disk_are_refused(three: Path) -> None:
    with open_chain(str(three)) as chain, pytest.raises(ValueError, match="-512"):
        list(chain.extents(-SECTOR, 2 * SECTOR))


def test_a_buffer_of_any_shape_is_filled(three: Path) -> None:
    view = expected(*layers_of_three(three))
    with open_chain(str(three)) as chain:
        for buffer in (bytearray(100), memoryview(bytearray(100)).cast("I"), array("I", bytes(100))):
            assert chain.read_into(7, buffer) == 100
            assert memoryview(buffer).tobytes() == view[7:107]
        assert chain.read_into(0, bytearray()) == 0


def test_extents_cover_a_range_and_say_which_layer_owns_it(three: Path) -> None:
    with open_chain(str(three)) as chain:
        found = [extent for window in chain.extents() for extent in window]
    assert found[0].start == 0
    assert found[-1].start + found[-1].length == SIZE
    for before, after in pairwise(found):
        assert before.start + before.length == after.start
    images = [parse(path) for path in layers_of_three(three)]
    for extent in found:
        for number in range(extent.start // SECTOR, (extent.start + extent.length) // SECTOR):
            owners = [depth for depth, image in enumerate(images) if image.sector(number) is not None]
            assert (extent.depth if extent.kind.name == "DATA" else None) == (owners[0] if owners else None)


# Writing


class Spy(LocalFolder):
    """The machine's files, every opening of them noted."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[str, bool]] = []

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.opened.append((Path(path).name, writable))
        return super().open(path, writable=writable)


def test_only_the_leaf_is_opened_for_writing_and_changed(three: Path) -> None:
    parents = layers_of_three(three)[1:]
    before = [path.read_bytes() for path in parents]
    view = bytearray(expected(*layers_of_three(three)))
    spy = Spy()
    with open_chain(str(three), writable=True, folder=spy) as chain:
        for offset, content in (
            (0, b"a" * 10),
            (5 * SECTOR - 3, b"b" * 1000),
            (2 * BLOCK, b"c" * BLOCK),
            (SIZE - 1, b"d"),
        ):
            chain.write(offset, content)
            view[offset : offset + len(content)] = content
            assert chain.read(0, SIZE) == bytes(view)
        chain.sync()
    assert sorted(name for name, writable in spy.opened if writable) == ["leaf.vhd"]
    assert [path.read_bytes() for path in parents] == before
    assert expected(*layers_of_three(three)) == bytes(view)


def test_reading_opens_nothing_for_writing(three: Path) -> None:
    spy = Spy()
    with open_chain(str(three), folder=spy) as chain:
        chain.read(0, SIZE)
    assert {writable for _, writable in spy.opened} == {False}


def test_parents_are_opened_once_however_deep_the_chain(three: Path) -> None:
    spy = Spy()
    with open_chain(str(three), folder=spy):
        pass
    assert [name for name, _ in spy.opened] == ["leaf.vhd", "middle.vhd", "base.vhd"]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (-SECTOR, SECTOR), (SIZE, 1), (SIZE - 1, 2), (SIZE - SECTOR, 2 * SECTOR), (1 << 70, 1)],
)
def test_a_write_that_leaves_the_disk_is_refused_whole(three: Path, offset: int, length: int) -> None:
    before = three.read_bytes()
    with open_chain(str(three), writable=True) as chain, pytest.raises(ValueError, match="outside"):
        chain.write(offset, b"x" * length)
    assert three.read_bytes() == before


def test_writing_nothing_changes_nothing(three: Path) -> None:
    before = three.read_bytes()
    with open_chain(str(three), writable=True) as chain:
        for offset in (0, 7, SIZE):
            chain.write(offset, b"")
    assert three.read_bytes() == before


def test_a_chain_opened_for_reading_is_not_written(three: Path) -> None:
    before = three.read_bytes()
    with open_chain(str(three)) as chain:
        for content in (b"x", b"x" * SECTOR, b""):
            with pytest.raises(ReadOnlyImageError):
                chain.write(0, content)
        with pytest.raises(ReadOnlyImageError):
            chain.sync()
    assert three.read_bytes() == before


def test_a_saved_state_is_read_with_a_finding_and_not_written(tmp_path: Path) -> None:
    path = put(tmp_path, saved=replace(BASE, saved_state=1, sectors=data([0], 1)))
    before = path.read_bytes()
    with open_chain(str(path)) as chain:
        assert chain.read(0, SIZE) == expected(path)
        assert [finding.corruption for finding in chain.findings] == [Corruption.SAVED_STATE]
    with pytest.raises(ReadOnlyImageError, match="saved"):
        open_chain(str(path), writable=True)
    assert path.read_bytes() == before


def test_a_saved_state_below_the_leaf_keeps_nobody_from_writing(three: Path) -> None:
    spec = replace(BASE, unique_id=ident(1), saved_state=1)
    put(three.parent, base=spec)
    with open_chain(str(three), writable=True) as chain:
        chain.write(0, b"x")
        assert chain.read(0, 1) == b"x"


def test_a_file_that_is_marked_read_only_is_not_written(three: Path) -> None:
    three.chmod(0o444)
    with pytest.raises(ReadOnlyImageError):
        open_chain(str(three), writable=True)
    with open_chain(str(three)) as chain:
        assert chain.read(0, 1) == b"\x03"


def test_parents_that_are_marked_read_only_are_below_a_leaf_that_is_written(three: Path) -> None:
    for path in layers_of_three(three)[1:]:
        path.chmod(0o444)
    with open_chain(str(three), writable=True) as chain:
        chain.write(0, b"x")


def test_blocks_that_share_bytes_are_told_and_neither_read_nor_written(tmp_path: Path) -> None:
    raw = bytearray(build(replace(BASE, sectors=data([0, 8], 1))))
    raw[1540:1544] = raw[1536:1540]
    path = put(tmp_path, overlap=bytes(raw))
    with open_chain(str(path)) as chain:
        assert [finding.corruption for finding in chain.findings] == [Corruption.BLOCKS_OVERLAP]
        with pytest.raises(CorruptImageError) as caught:
            chain.read(0, SIZE)
    assert caught.value.corruption is Corruption.BLOCKS_OVERLAP
    with pytest.raises(CorruptImageError) as caught:
        open_chain(str(path), writable=True)
    assert caught.value.corruption is Corruption.BLOCKS_OVERLAP
    assert path.read_bytes() == raw


# The stream


@pytest.fixture
def chain(three: Path) -> Iterator[Chain]:
    with open_chain(str(three)) as opened:
        yield opened


@pytest.fixture
def view(three: Path) -> bytes:
    return expected(*layers_of_three(three))


@pytest.fixture(params=["buffered", "raw"])
def opened(chain: Chain, request: pytest.FixtureRequest) -> Callable[[], Stream]:
    """Open a stream of the chain, buffered or not."""
    return chain.open_stream if request.param == "buffered" else lambda: chain.open_stream(buffered=False)


def test_a_stream_is_buffered_unless_a_raw_one_is_asked_for(chain: Chain) -> None:
    with chain.open_stream() as buffered, chain.open_stream(buffered=False) as raw:
        assert isinstance(buffered, io.BufferedReader)
        assert isinstance(raw, io.RawIOBase)


def test_a_stream_has_size_and_mode_and_no_descriptor(opened: Callable[[], Stream]) -> None:
    with opened() as stream:
        assert (stream.size, stream.mode) == (SIZE, "rb")
        with pytest.raises(io.UnsupportedOperation):
            stream.fileno()


def test_a_stream_is_readable_and_seekable(opened: Callable[[], Stream]) -> None:
    with opened() as stream:
        assert (stream.readable(), stream.seekable(), stream.writable()) == (True, True, False)
        with pytest.raises((io.UnsupportedOperation, NotImplementedError)):
            stream.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            stream.truncate(0)


def test_a_stream_reads_on_from_where_it_stands(opened: Callable[[], Stream], view: bytes) -> None:
    with opened() as stream:
        assert stream.tell() == 0
        pieces = [stream.read(length) for length in (1, 511, 512, 5000, 0, 3)]
        assert b"".join(piece or b"" for piece in pieces) == view[: stream.tell()]
        assert stream.tell() == 1 + 511 + 512 + 5000 + 3
        assert stream.readall() == view[6027:]
        assert stream.read() == b""


@pytest.mark.parametrize(
    ("offset", "whence", "position"),
    [
        (7, io.SEEK_SET, 7),
        (7, io.SEEK_CUR, 107),
        (-7, io.SEEK_CUR, 93),
        (0, io.SEEK_END, SIZE),
        (-SIZE, io.SEEK_END, 0),
        (9, io.SEEK_END, SIZE + 9),
        (1 << 62, io.SEEK_SET, 1 << 62),
    ],
)
def test_a_stream_seeks_from_the_start_the_position_and_the_end(
    opened: Callable[[], Stream], view: bytes, offset: int, whence: int, position: int
) -> None:
    with opened() as stream:
        stream.seek(100)
        assert stream.seek(offset, whence) == position
        assert stream.tell() == position
        assert stream.read(5) == view[position : position + 5]


@pytest.mark.parametrize(("offset", "whence"), [(-1, 0), (-101, 1), (-SIZE - 1, 2), (0, 3), (0, -1)])
def test_a_seek_to_nowhere_is_refused_and_moves_nothing(opened: Callable[[], Stream], offset: int, whence: int) -> None:
    with opened() as stream:
        stream.seek(100)
        with pytest.raises(ValueError, match=r"seek|whence"):
            stream.seek(offset, whence)
        assert stream.tell() == 100


def test_a_stream_ends_where_the_disk_ends(opened: Callable[[], Stream], view: bytes) -> None:
    with opened() as stream:
        stream.seek(SIZE - 3)
        buffer = bytearray(b"?" * 10)
        assert stream.readinto(buffer) == 3
        assert bytes(buffer) == view[-3:] + b"?" * 7
        assert stream.readinto(buffer) == 0
        assert stream.readinto(bytearray()) == 0
        assert stream.tell() == SIZE


def test_a_closed_stream_refuses_everything_and_leaves_the_chain_open(
    chain: Chain, opened: Callable[[], Stream], view: bytes
) -> None:
    stream = opened()
    stream.close()
    stream.close()
    for use in (
        stream.tell,
        stream.read,
        stream.readall,
        lambda: stream.seek(0),
        lambda: stream.readinto(bytearray(1)),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert chain.read(0, 10) == view[:10]


def test_streams_of_one_chain_keep_their_own_positions(chain: Chain, view: bytes) -> None:
    with chain.open_stream() as one, chain.open_stream() as other:
        one.seek(1000)
        assert other.read(10) == view[:10]
        assert one.read(10) == view[1000:1010]


def test_a_buffered_reader_over_a_stream_reads_lines_peeks_and_seeks(chain: Chain, view: bytes) -> None:
    with io.BufferedReader(chain.open_stream(), buffer_size=777) as reader:
        assert reader.peek(1)[:1] == view[:1]
        for start in (0, 5000, 11, SIZE - 20, SIZE):
            reader.seek(start)
            assert reader.read(900) == view[start : start + 900]
        reader.seek(0)
        assert b"".join(reader) == view
    assert chain.read(0, 1) == view[:1]


def test_a_stream_knows_its_files_name(chain: Chain, three: Path) -> None:
    with chain.open_stream() as stream:
        assert getattr(stream, "name", None) == str(three.resolve())


# Streams that write


def test_a_stream_of_a_writable_chain_writes_the_leaf(three: Path, view: bytes) -> None:
    with open_chain(str(three), writable=True) as chain:
        with chain.open_stream() as stream:
            assert (stream.writable(), stream.mode) == (True, "rb+")
            stream.seek(700)
            stream.write(b"written")
            stream.seek(690)
            assert stream.read(20) == view[690:700] + b"written" + view[707:710]
        assert chain.read(690, 20) == view[690:700] + b"written" + view[707:710]
    assert expected(*layers_of_three(three)) == view[:700] + b"written" + view[707:]


def test_a_stream_of_a_writable_chain_can_be_read_only(three: Path) -> None:
    with open_chain(str(three), writable=True) as chain, chain.open_stream(writable=False) as stream:
        assert not stream.writable()
        with pytest.raises(io.UnsupportedOperation):
            stream.write(b"x")


def test_a_writable_stream_of_a_chain_that_is_read_is_refused(chain: Chain) -> None:
    with pytest.raises(ReadOnlyImageError, match="opened for reading"):
        chain.open_stream(writable=True)


def test_closing_a_chain_writes_what_its_streams_hold(three: Path, view: bytes) -> None:
    with open_chain(str(three), writable=True) as chain:
        stream = chain.open_stream()
        stream.seek(700)
        stream.write(b"written")
    assert expected(*layers_of_three(three)) == view[:700] + b"written" + view[707:]


def test_syncing_a_chain_writes_what_its_streams_hold(three: Path, view: bytes) -> None:
    with open_chain(str(three), writable=True) as chain:
        stream = chain.open_stream()
        stream.seek(700)
        stream.write(b"written")
        chain.sync()
        assert expected(*layers_of_three(three)) == view[:700] + b"written" + view[707:]


def test_a_stream_is_cut_at_the_end_of_the_disk_as_a_block_device_is(three: Path, view: bytes) -> None:
    with open_chain(str(three), writable=True) as chain, chain.open_stream(buffered=False) as stream:
        stream.seek(SIZE - 1)
        assert stream.write(b"xy") == 1
        with pytest.raises(OSError, match="the disk ends at") as caught:
            stream.write(b"y")
        assert caught.value.errno == errno.ENOSPC
        assert stream.tell() == SIZE
        with pytest.raises(io.UnsupportedOperation):
            stream.truncate(SIZE + 1)
    assert expected(*layers_of_three(three)) == view[:-1] + b"x"


# As a sequence of bytes


def test_a_slice_of_a_chain_is_read(tmp_path: Path) -> None:
    contents = [{0: b"base", 510: b"\x55\xaa"}, {600: b"child"}]
    view = testing.expected_view(contents)
    with open_chain(testing.make_chain(tmp_path, contents)[0]) as chain:
        assert len(chain) == chain.size == len(view)
        for where in (slice(510, 512), slice(None, 700), slice(-512, None), slice(5, 3), slice(1 << 40, None)):
            assert chain[where] == view[where]


def test_a_chain_is_not_read_byte_by_byte(tmp_path: Path) -> None:
    with open_chain(testing.make_chain(tmp_path, [{}])[0]) as chain:
        with pytest.raises(ValueError, match="a step of 2"):
            chain[0:512:2]
        with pytest.raises(TypeError, match="slices"):
            chain[0]  # type: ignore[index]
        with pytest.raises(TypeError):
            iter(chain)  # type: ignore[call-overload]
