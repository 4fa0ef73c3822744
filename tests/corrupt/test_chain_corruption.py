"""Chains of which a file is damaged or forged: an error that names the file and the rule, or right data (4.1, 4.2).

The fuzzers turn bytes of the structures of a small chain. Whatever comes of it must be a `VhdError`, or a disk that
the tests' own slow reader reads in the same way; never another exception, much memory, or a long wait.
"""

from __future__ import annotations

import signal
import struct
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.plainbuild import ImageSpec, LocatorSpec, build, locator
from tests.plainvhd import (
    DIFFERENCING,
    FIXED,
    FOOTER_CHECKSUM,
    HEADER_CHECKSUM,
    HEADERS_LENGTH,
    SECTOR,
    FormatError,
    flat,
    parse,
    seal,
)
from vhdkit.chain.chain import open_chain
from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, ParentNotFoundError, UnsupportedImageError, VhdError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.chain import Chain

BLOCK = 8 * SECTOR
SIZE = 4 * BLOCK + 3 * SECTOR
TABLE = HEADERS_LENGTH
LOCATORS = TABLE + SECTOR
MEMORY = 64 << 20


def data(numbers: list[int], fill: int) -> dict[int, bytes]:
    return {number: bytes([fill, number]) * (SECTOR // 2) for number in numbers}


BASE = ImageSpec(size=SIZE, block_size=BLOCK, unique_id=b"base" * 4, sectors=data([0, 2, 9, 20, 34], 1))
LEAF = ImageSpec(
    disk_type=DIFFERENCING,
    size=SIZE,
    block_size=BLOCK,
    unique_id=b"leaf" * 4,
    parent_id=BASE.unique_id,
    parent_name="base.vhd",
    sectors=data([1, 2, 16, 17, 34], 2),
    locators=(locator(0, b"W2ku", "C:\\vms\\base.vhd"), locator(1, b"W2ru", ".\\base.vhd")),
)


def put(folder: Path, leaf: bytes, base: bytes) -> str:
    (folder / "leaf.vhd").write_bytes(leaf)
    (folder / "base.vhd").write_bytes(base)
    return str(folder / "leaf.vhd")


def patched(raw: bytes, offset: int, new: bytes) -> bytes:
    return raw[:offset] + new + raw[offset + len(new) :]


def sealed(raw: bytes, *, trailing: bool = True) -> bytes:
    """Make every checksum right again, as a forger would."""
    raw = seal(raw[:SECTOR], FOOTER_CHECKSUM) + raw[SECTOR:]
    raw = raw[:SECTOR] + seal(raw[SECTOR:HEADERS_LENGTH], HEADER_CHECKSUM) + raw[HEADERS_LENGTH:]
    return raw[:-SECTOR] + seal(raw[-SECTOR:], FOOTER_CHECKSUM) if trailing else raw


def expected(leaf: str) -> bytes:
    return flat([parse(leaf), parse(Path(leaf).with_name("base.vhd"))]).tobytes()


# A damaged parent


def broken_footers(raw: bytes) -> bytes:
    return patched(patched(raw, len(raw) - 100, b"\1"), 200, b"\1")


UNIDENTIFIED = [
    (broken_footers(build(BASE)), "checksum"),
    (patched(build(BASE), SECTOR + 40, b"\1"), "checksum"),
    (patched(build(BASE), SECTOR, b"x"), "dynamic header"),
    (build(BASE)[:700], "not a VHD"),
    (build(replace(BASE, disk_type=FIXED))[:-700], "not a VHD"),
    (b"", "not a VHD"),
    (b"not a disk image" * 100, "not a VHD"),
    (b"vhdxfile" + bytes(70000), "VHDX"),
    (sealed(patched(patched(build(BASE), 12, b"\0\2"), -500 % len(build(BASE)), b"\0\2")), "version"),
    (sealed(patched(build(BASE), SECTOR + 32, b"\0\0\3\0")), "block size"),
    (sealed(patched(build(BASE), SECTOR + 28, b"\0\0\0\1")), "BAT"),
    (sealed(patched(build(BASE), SECTOR + 16, b"\xff" * 8)), "BAT"),
]


@pytest.mark.parametrize(("base", "reason"), UNIDENTIFIED)
def test_what_has_the_parents_name_and_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, base: bytes, reason: str
) -> None:
    leaf = put(tmp_path, build(LEAF), base)
    with pytest.raises(ParentNotFoundError) as caught:
        open_chain(leaf)
    assert [item for item in caught.value.candidates if "base.vhd" in str(item) and reason in item.reason]
    assert "base.vhd" in str(caught.value)


@pytest.mark.parametrize(("base", "reason"), UNIDENTIFIED)
def test_an_explicit_parent_that_cannot_be_read_is_the_error_itself(tmp_path: Path, base: bytes, reason: str) -> None:
    leaf = put(tmp_path, build(LEAF), base)
    with pytest.raises((CorruptImageError, UnsupportedImageError), match=reason) as caught:
        open_chain(leaf, parent=str(tmp_path / "base.vhd"))
    assert caught.value.path == str((tmp_path / "base.vhd").resolve())


@pytest.mark.parametrize(
    ("offset", "entry", "corruption"),
    [
        (TABLE, 0, Corruption.BLOCK_IN_HEADERS),
        (TABLE, 3, Corruption.BLOCK_IN_HEADERS),
        (TABLE + 4, 0x7FFFFFFF, Corruption.BLOCK_OUTSIDE_FILE),
        (TABLE, 0xFFFFFFFE, Corruption.BLOCK_OUTSIDE_FILE),
    ],
)
def test_a_parents_table_that_leads_astray_is_an_error_of_the_parent(
    tmp_path: Path, offset: int, entry: int, corruption: Corruption
) -> None:
    leaf = put(tmp_path, build(LEAF), patched(build(BASE), offset, struct.pack(">I", entry)))
    for explicit in (None, str(tmp_path / "base.vhd")):
        with pytest.raises(CorruptImageError) as caught:
            open_chain(leaf, parent=explicit)
        assert caught.value.corruption is corruption
        assert caught.value.path == str((tmp_path / "base.vhd").resolve())


@pytest.mark.parametrize("length", range(SECTOR, len(build(BASE)), 5 * SECTOR + 100))
def test_a_parent_cut_anywhere_is_refused_or_reads_right(tmp_path: Path, length: int) -> None:
    leaf = put(tmp_path, build(LEAF), build(BASE))
    whole = expected(leaf)
    (tmp_path / "base.vhd").write_bytes(build(BASE)[:length])
    try:
        with open_chain(leaf) as chain:
            view, findings = chain.read(0, SIZE), chain.findings
    except (CorruptImageError, ParentNotFoundError) as error:
        text = str(error)
    else:
        assert view == whole
        (finding,) = findings
        assert finding.corruption is Corruption.FOOTER_TRAILING_LOST
        text = str(finding)
    assert "base.vhd" in text


def test_a_fixed_parent_whose_data_were_cut_from_the_front_is_refused(tmp_path: Path) -> None:
    leaf = put(tmp_path, build(LEAF), build(replace(BASE, disk_type=FIXED))[SECTOR:])
    with pytest.raises(ParentNotFoundError, match=r"base\.vhd"):
        open_chain(leaf)


@pytest.mark.parametrize("trailing", ["none", "damaged"])
def test_a_parent_without_its_trailing_footer_is_read_with_a_finding(tmp_path: Path, trailing: str) -> None:
    base = build(replace(BASE, trailing_footer="none")) if trailing == "none" else build(BASE)[:-100] + bytes(100)
    base = base if trailing == "none" else patched(base, len(base) - SECTOR, b"\0")
    leaf = put(tmp_path, build(LEAF), base)
    with open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == expected(leaf)
        (finding,) = chain.findings
        assert finding.corruption is Corruption.FOOTER_TRAILING_LOST
        assert finding.path.endswith("base.vhd")


def test_a_footer_copy_with_an_impossible_header_offset_is_no_footer(tmp_path: Path) -> None:
    for offset in (2**64 - 1, 2**63, 2**63 - 1, 2**63 - 512, 2**40):
        raw = patched(build(BASE), 16, struct.pack(">Q", offset))
        raw = seal(raw[:SECTOR], FOOTER_CHECKSUM) + raw[SECTOR:-SECTOR] + bytes(SECTOR)
        leaf = put(tmp_path, build(LEAF), raw)
        with pytest.raises(VhdError, match=r"base\.vhd"):
            open_chain(leaf)


@pytest.mark.parametrize("kept", [0, SECTOR, 2 * SECTOR])
def test_a_file_that_shrinks_under_an_open_chain_is_corrupt_and_named(tmp_path: Path, kept: int) -> None:
    leaf = put(tmp_path, build(LEAF), build(BASE))
    last_block = int(parse(build(BASE)).bat[2]) * SECTOR
    with open_chain(leaf) as chain:
        (tmp_path / "base.vhd").write_bytes(build(BASE)[: last_block + kept])
        with pytest.raises(CorruptImageError, match=r"base\.vhd"):
            chain.read(20 * SECTOR, SECTOR)


# Damaged locators


def leaf_with(*locators: LocatorSpec, **fields: Any) -> bytes:
    return build(replace(LEAF, locators=locators, **fields))


def odd(slot: int, code: bytes = b"W2ru", raw: bytes = b".\0/\0x\0", **fields: Any) -> LocatorSpec:
    return LocatorSpec(slot=slot, code=code, data=raw, **fields)


UNREADABLE = [
    odd(0, offset=1 << 40),
    odd(0, offset=2**64 - 1),
    odd(0, offset=2**63),
    odd(0, offset=2**64 - 4, length=8),
    odd(0, length=0xFFFFFFFF),
    odd(0, length=65537, room=131072),
    odd(0, length=0),
    odd(0, offset=0),
    odd(0, offset=511),
]


@pytest.mark.parametrize("spec", UNREADABLE)
def test_a_locator_that_leads_astray_is_told_and_the_others_are_used(tmp_path: Path, spec: LocatorSpec) -> None:
    leaf = put(tmp_path, leaf_with(spec, locator(1, b"W2ru", ".\\base.vhd"), parent_name=""), build(BASE))
    with open_chain(leaf) as chain:
        assert [finding.corruption for finding in chain.findings] == [Corruption.LOCATOR_UNREADABLE]
        assert chain.read(0, SIZE) == expected(leaf)


UNUSABLE = [
    odd(0, raw=".\\gone.vhd".encode("utf-16-le") + b"x"),
    odd(0, raw=b"x"),
    odd(0, raw=b"\xff\xff\xff"),
    odd(0, raw=b"\x00\xd8" * 4),
    odd(0, code=b"MacX", raw=b"\xff\xfe\x80"),
    odd(0, code=b"MacX", raw=b"file://\xff\xfe%ff%"),
    odd(0, code=b"MacX", raw=b"http://base.vhd"),
    odd(0, code=b"MacX", raw=b"file://"),
    odd(0, code=b"MacX", raw=b""),
    odd(0, code=b"Mac ", raw=b"\0\1\2\3" * 30),
    odd(0, code=b"Wi2k", raw=bytes(range(1, 256))),
    odd(0, code=b"\xff\xff\xff\xff"),
    odd(0, code=b"\0\0\0\1"),
    odd(0, code=b"ur2W"),
    odd(0, space=0),
    odd(0, space=0xFFFFFFFF),
    odd(0, space=1, raw=b"a" * 2000, room=2048),
    odd(0, raw=b"a\0" * 32768, room=65536),
    odd(0, offset=SECTOR, raw=b"a\0" * 200),
    odd(0, offset=TABLE, raw=b"a\0" * 9),
]


@pytest.mark.parametrize("spec", UNUSABLE)
def test_a_locator_that_says_nothing_useful_keeps_the_others_from_nothing(tmp_path: Path, spec: LocatorSpec) -> None:
    leaf = put(tmp_path, leaf_with(spec, locator(1, b"W2ku", ".\\base.vhd"), parent_name=""), build(BASE))
    (tmp_path / "decoy.vhd").write_bytes(build(BASE))
    with open_chain(leaf) as chain:
        assert chain.layers[1].path == str((tmp_path / "base.vhd").resolve())
        assert chain.read(0, SIZE) == expected(leaf)


def test_a_text_of_odd_length_is_read_without_its_last_byte(tmp_path: Path) -> None:
    spec = odd(0, raw=".\\base.vhd".encode("utf-16-le") + b"x")
    leaf = put(tmp_path, leaf_with(spec, parent_name=""), build(BASE))
    (tmp_path / "decoy.vhd").write_bytes(build(BASE))
    with open_chain(leaf) as chain:
        assert chain.layers[1].path == str((tmp_path / "base.vhd").resolve())


def test_a_locator_may_lie_behind_the_blocks(tmp_path: Path) -> None:
    # A tool that relinks to a longer path puts it at the end, where there is room.
    text = ".\\base.vhd".encode("utf-16-le")
    at = len(build(replace(LEAF, locators=()))) - SECTOR
    spec = odd(0, raw=text, offset=at, space=SECTOR)
    raw = build(replace(LEAF, locators=(spec,), parent_name="", footer_gap=SECTOR))
    leaf = put(tmp_path, patched(raw, at, text), build(BASE))
    with open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == expected(leaf)
    with open_chain(leaf, writable=True) as chain:
        chain.write(3 * BLOCK, b"x" * BLOCK)
    with open_chain(leaf) as chain:
        assert chain.read(3 * BLOCK, BLOCK) == b"x" * BLOCK


def test_a_locator_that_lies_on_a_block_spoils_neither_name_nor_data(tmp_path: Path) -> None:
    plain = build(replace(LEAF, locators=(locator(1, b"W2ru", ".\\base.vhd"),)))
    at = struct.unpack_from(">I", plain, TABLE)[0] * SECTOR + SECTOR
    leaf = put(tmp_path, leaf_with(odd(0, offset=at), locator(1, b"W2ru", ".\\base.vhd")), build(BASE))
    with open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == expected(leaf)


def test_eight_locators_of_64_kib_are_no_burden(tmp_path: Path) -> None:
    raw = "A\\..\\".encode("utf-16-le") * 6553
    specs = [odd(slot, raw=raw, room=65536) for slot in range(8)]
    leaf = put(tmp_path, leaf_with(*specs, parent_name="base.vhd"), build(BASE))
    with bounded(), open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == expected(leaf)


# Forged files


@contextmanager
def bounded() -> Iterator[None]:
    """Hold what happens inside to 64 MiB and, where the system has alarms, to 10 seconds."""

    def fail(_number: int, _frame: object) -> None:
        raise TimeoutError("more than 10 seconds")

    has_alarm = hasattr(signal, "SIGALRM")
    previous = signal.signal(signal.SIGALRM, fail) if has_alarm else None
    tracemalloc.start()
    try:
        if has_alarm:
            signal.alarm(10)
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        if has_alarm:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)


def read_around(chain: Chain) -> list[tuple[int, bytes]]:
    """Read some ranges of a disk that may claim to be large."""
    size = chain.size
    starts = {0, max(0, size // 2 // SECTOR * SECTOR), max(0, size - SIZE)}
    return [(start, chain.read(start, SIZE)) for start in sorted(starts)]


def oracle(chain: Chain) -> bytes | None:
    """Return what the slow reader makes of the same files, None where it cannot or would take too long."""
    try:
        images = [parse(layer.path) for layer in chain.layers]
        if any(image.size > 1 << 20 or (image.header and image.block_size > 1 << 20) for image in images):
            return None
        return flat(images).tobytes()
    except FormatError:
        return None


def check(leaf: str) -> VhdError | None:
    """Open and read a chain that may be anything; return the error if one says that it cannot be read."""
    try:
        with bounded(), open_chain(leaf) as chain:
            size, parts = chain.size, read_around(chain)
            told = "".join(str(finding) for finding in chain.findings)
            view = oracle(chain)
    except VhdError as error:
        refusal = error
    else:
        assert told.isprintable()
        for start, part in parts:
            assert len(part) == min(SIZE, size - start)
            assert view is None or part == view[start : start + SIZE]
        return None
    assert all(line.isprintable() for line in str(refusal).split("\n"))
    assert refusal.path
    return refusal


def test_the_chain_that_is_fuzzed_reads_whole(tmp_path: Path) -> None:
    assert check(put(tmp_path, build(LEAF), build(BASE))) is None


# (offset, width) of every field whose value steers the reader; negative offsets count from the file's end.
FIELDS = [
    *((base + at, width) for base in (0, -SECTOR) for at, width in [(8, 4), (12, 4), (16, 8), (40, 8), (48, 8)]),
    *((base + at, width) for base in (0, -SECTOR) for at, width in [(56, 4), (60, 4), (68, 4), (84, 1)]),
    *((SECTOR + at, width) for at, width in [(8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (40, 4), (56, 4), (64, 8)]),
    *((SECTOR + 576 + 24 * slot + at, width) for slot in range(3) for at, width in [(0, 4), (4, 4), (8, 4), (16, 8)]),
    *((TABLE + 4 * index, 4) for index in range(5)),
]
VALUES = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 100, 127, 255, 511, 512, 513, 1024, 1536, 2048, 2560, 4096, 8192, 16384, 65536, 65537),
    *(1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 40, 2040 << 30, (2040 << 30) + 512),
    *((1 << 62), (1 << 63) - 512, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1),
]
# Places to turn a byte: footer copy, header, table, locators' text, trailing footer.
PLACES = st.one_of(st.integers(0, LOCATORS + 2 * SECTOR - 1), st.integers(-SECTOR, -1))
IS_LEAF = st.booleans()
PATIENT = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def change(files: dict[bool, bytes], where: list[tuple[bool, int, bytes]], *, seal_again: bool) -> None:
    for is_leaf, offset, new in where:
        raw = files[is_leaf]
        files[is_leaf] = patched(raw, offset % len(raw), new)
    if seal_again:
        files |= {is_leaf: sealed(raw) for is_leaf, raw in files.items()}


@settings(max_examples=100, deadline=None, suppress_health_check=PATIENT)
@given(
    turned=st.lists(st.tuples(IS_LEAF, PLACES, st.integers(1, 255)), min_size=1, max_size=5),
    seal_again=st.booleans(),
)
def test_turned_bytes_give_an_error_or_what_the_oracle_reads(
    folder: Path, turned: list[tuple[bool, int, int]], *, seal_again: bool
) -> None:
    files = {True: build(LEAF), False: build(BASE)}
    where = [(is_leaf, at, bytes([files[is_leaf][at] ^ mask])) for is_leaf, at, mask in turned]
    change(files, where, seal_again=seal_again)
    check(put(folder, files[True], files[False]))


@settings(max_examples=120, deadline=None, suppress_health_check=PATIENT)
@given(
    forged=st.lists(
        st.tuples(IS_LEAF, st.sampled_from(FIELDS), st.sampled_from(VALUES) | st.integers(0, (1 << 64) - 1)),
        min_size=1,
        max_size=3,
    ),
    lost=st.lists(IS_LEAF, max_size=2, unique=True),
)
@example(forged=[(False, (16, 8), (1 << 64) - 1)], lost=[False])
@example(forged=[(True, (48, 8), 2040 << 30), (True, (-SECTOR + 48, 8), 2040 << 30)], lost=[])
def test_forged_fields_give_an_error_or_what_the_oracle_reads(
    folder: Path, forged: list[tuple[bool, tuple[int, int], int]], lost: list[bool]
) -> None:
    files = {True: build(LEAF), False: build(BASE)}
    where = [(is_leaf, at, (value % (1 << 8 * width)).to_bytes(width, "big")) for is_leaf, (at, width), value in forged]
    change(files, where, seal_again=True)
    for is_leaf in lost:
        files[is_leaf] = files[is_leaf][:-SECTOR] + bytes(SECTOR)
    check(put(folder, files[True], files[False]))


@settings(max_examples=50, deadline=None, suppress_health_check=PATIENT)
@given(cut=st.integers(0, len(build(LEAF))), is_leaf=IS_LEAF, added=st.binary(max_size=40))
def test_a_file_cut_anywhere_gives_an_error_or_what_the_oracle_reads(
    folder: Path, cut: int, added: bytes, *, is_leaf: bool
) -> None:
    files = {True: build(LEAF), False: build(BASE)}
    files[is_leaf] = files[is_leaf][:cut] + added
    check(put(folder, files[True], files[False]))


@settings(max_examples=70, deadline=None, suppress_health_check=PATIENT)
@given(
    code=st.sampled_from([b"W2ru", b"W2ku", b"MacX", b"Wi2r", b"Wi2k"]) | st.binary(min_size=4, max_size=4),
    text=st.binary(max_size=80)
    | st.text(st.sampled_from("./\\:%abA\0\ud800\udc80\u202e\n"), max_size=40).map(
        lambda text: text.encode("utf-16-le", "surrogatepass")
    ),
    name=st.text(st.sampled_from("./\\:%abA\0\ud800\udc80\u202e\n"), max_size=40),
)
def test_any_text_in_a_locator_or_name_gives_an_error_or_the_parent(
    folder: Path, code: bytes, text: bytes, name: str
) -> None:
    assume(code != bytes(4))
    refusal = check(put(folder, leaf_with(odd(0, code=code, raw=text), parent_name=name), build(BASE)))
    assert refusal is None, "the parent is found by its id at least"


def test_the_checksums_that_forgers_make_are_right() -> None:
    raw = patched(patched(build(LEAF), SECTOR + 40, b"\7"), 30, b"\7")
    assert not parse(raw).checksums_ok
    assert parse(sealed(raw)).checksums_ok
