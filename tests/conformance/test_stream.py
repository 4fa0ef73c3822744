"""A chain's stream is a file object like any other: for readers of file systems, and for the standard library's."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import vhdkit
from tests.plainvhd import SECTOR, flat, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES: Final = Path(__file__).resolve().parents[2] / "fixtures"
WEB01: Final = (
    FIXTURES / "web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd",
    FIXTURES / "web01_1CE6964B-29B6-4D37-97AA-E847195217F3.avhd",
    FIXTURES / "web01.vhd",
)
PARTITION: Final = struct.Struct("<B3sB3sII")


@pytest.fixture
def leaf() -> Iterator[vhdkit.Chain]:
    with vhdkit.open_chain(str(WEB01[0])) as chain:
        yield chain


@pytest.fixture(scope="module")
def content() -> bytes:
    return flat([parse(path) for path in WEB01]).tobytes()


# File systems


def first_partition(disk: io.BufferedIOBase) -> int:
    """Return where the first partition begins, by the master boot record."""
    disk.seek(0)
    record = disk.read(SECTOR) or b""
    assert record[510:] == b"\x55\xaa"
    return SECTOR * int(PARTITION.unpack_from(record, 446)[4])


def files_of(disk: io.BufferedIOBase) -> dict[str, bytes]:
    """Read every file of the FAT file system in the first partition, with dissect.fat, straight from the stream."""
    fat = pytest.importorskip("dissect.fat.fat", reason="needs dissect.fat")
    stream = pytest.importorskip("dissect.util.stream", reason="needs dissect.fat")
    start = first_partition(disk)
    system = fat.FATFS(stream.RangeStream(disk, start, disk.seek(0, io.SEEK_END) - start))
    return dict(files_below(system.root, ""))


def files_below(directory: Any, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in directory.iterdir():
        if entry.name in {".", ".."} or entry.is_volume_id():
            continue
        if entry.is_directory():
            yield from files_below(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.open().read()


def test_dissect_reads_the_files_that_windows_wrote_to_a_child_of_a_fixed_disk(corpus: Path) -> None:
    with vhdkit.open_chain(str(corpus / "dfvfs" / "fat-differential.vhd")) as chain:
        files = files_of(chain.open_stream())
    assert files["a_directory/another_file"] == b"This is another file. \r\n"
    assert files["a_directory/A_FILE"].startswith(b"This is a text file. \r\n")
    assert files["passwords.txt"].startswith(b"place,user,password \r\nbank,joesmith,superrich \r\n")
    assert {"System Volume Information/WPSettings.dat", "System Volume Information/IndexerVolumeGuid"} <= set(files)


def test_dissect_does_not_find_the_childs_files_in_the_parent(corpus: Path) -> None:
    with vhdkit.open_chain(str(corpus / "dfvfs" / "fat-parent.vhd")) as chain:
        assert "passwords.txt" not in files_of(chain.open_stream())


def test_dissect_sees_each_snapshot_of_a_disk_as_it_was(corpus: Path) -> None:
    names = {}
    for layer in ("base", "child", "grand"):
        with vhdkit.open_chain(str(corpus / "dosbox-x-made" / f"{layer}.vhd")) as chain:
            names[layer] = files_of(chain.open_stream())
    assert {layer: sorted(files) for layer, files in names.items()} == {
        "base": [],
        "child": ["A.BIN", "B.TXT"],
        "grand": ["A.BIN", "C.TXT"],
    }
    assert names["child"]["A.BIN"] == names["grand"]["A.BIN"]
    assert len(names["grand"]["A.BIN"]) == 123_457
    assert names["grand"]["C.TXT"] == (b"hello differencing\r\n" * 500)[:10_000]


# The standard library


def test_a_stream_is_a_raw_readable_seekable_file_object(leaf: vhdkit.Chain) -> None:
    stream = leaf.open_stream()
    assert isinstance(stream, io.BufferedIOBase)
    assert (stream.readable(), stream.seekable(), stream.writable()) == (True, True, False)
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    with pytest.raises(io.UnsupportedOperation):
        stream.truncate()


def test_copyfileobj_copies_the_whole_disk(leaf: vhdkit.Chain, content: bytes, tmp_path: Path) -> None:
    with leaf.open_stream() as stream, (tmp_path / "disk.raw").open("wb") as raw:
        shutil.copyfileobj(stream, raw)
    assert (tmp_path / "disk.raw").read_bytes() == content


@pytest.mark.parametrize("length", [1, 7, SECTOR - 1, SECTOR, 1499, 4097])
def test_copyfileobj_copies_in_pieces_of_any_length(leaf: vhdkit.Chain, content: bytes, length: int) -> None:
    out = io.BytesIO()
    stream = leaf.open_stream()
    stream.seek(len(content) - 1500)
    shutil.copyfileobj(stream, out, length)
    assert out.getvalue() == content[-1500:]


def test_file_digest_reads_the_whole_disk(leaf: vhdkit.Chain, content: bytes) -> None:
    stream: Any = leaf.open_stream()  # typeshed asks for getbuffer or fileobj; the library for readinto
    assert hashlib.file_digest(stream, "sha256").digest() == hashlib.sha256(content).digest()


def test_readall_reads_from_the_position_to_the_end(leaf: vhdkit.Chain, content: bytes) -> None:
    stream = leaf.open_stream()
    stream.seek(-5000, io.SEEK_END)
    assert stream.read() == content[-5000:]
    assert stream.read() == b""
    assert stream.read(10) == b""


@pytest.mark.parametrize("buffer_size", [1, 100, SECTOR, 8192])
def test_a_buffered_reader_reads_at_odd_offsets(leaf: vhdkit.Chain, content: bytes, buffer_size: int) -> None:
    reader = io.BufferedReader(leaf.open_stream(), buffer_size)
    for offset in (0, 1, 511, 513, 65_535, 3 * SECTOR - 2, len(content) - 9):
        reader.seek(offset)
        assert reader.peek(1)[:1] == content[offset : offset + 1]
        assert reader.read(8) == content[offset : offset + 8]
        assert reader.tell() == offset + 8
    assert reader.read(100) == content[-1:]


def test_structs_are_unpacked_across_sectors(leaf: vhdkit.Chain, content: bytes) -> None:
    stream, shape = leaf.open_stream(), struct.Struct("<HIQ")
    for offset in range(SECTOR - 13, 12 * SECTOR, SECTOR):
        stream.seek(offset)
        assert shape.unpack(stream.read(shape.size) or b"") == shape.unpack_from(content, offset)


def test_readinto_fills_any_writable_buffer_as_far_as_the_disk_goes(leaf: vhdkit.Chain, content: bytes) -> None:
    stream: Any = leaf.open_stream()
    buffer = bytearray(b"\xee" * 1000)
    stream.seek(-600, io.SEEK_END)
    assert stream.readinto(memoryview(buffer)[100:]) == 600
    assert bytes(buffer) == b"\xee" * 100 + content[-600:] + b"\xee" * 300


def test_two_streams_of_a_chain_have_positions_of_their_own(leaf: vhdkit.Chain, content: bytes) -> None:
    first, second = leaf.open_stream(), leaf.open_stream()
    first.seek(1000)
    assert (second.read(10), first.read(10)) == (content[:10], content[1000:1010])
    first.close()
    assert second.read(10) == content[10:20]


def test_an_archive_written_to_a_disk_is_opened_from_its_stream(tmp_path: Path) -> None:
    """Readers that seek from the end (zip) and those that read on (tar) find their data on a disk in a chain."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as writer:
        writer.writestr("a.txt", "zip\n" * 999)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 3996
        archive.addfile(member, io.BytesIO(b"tar\n" * 999))
    base, child = tmp_path / "base.vhd", tmp_path / "child.avhd"
    size = -(-len(zipped.getvalue()) // SECTOR) * SECTOR + 100 * SECTOR
    vhdkit.create_image(str(base), size=size)
    with vhdkit.open_chain(str(base), writable=True) as chain:
        chain.write(size - len(zipped.getvalue()), zipped.getvalue())
    vhdkit.create_image(str(child), parent=str(base))
    with vhdkit.open_chain(str(child), writable=True) as chain:
        chain.write(0, tarred.getvalue())
    with vhdkit.open_chain(str(child)) as chain:
        stream: Any = chain.open_stream()
        assert zipfile.ZipFile(stream).read("a.txt") == b"zip\n" * 999
        stream.seek(0)
        with tarfile.open(fileobj=stream) as archive:
            extracted = archive.extractfile("a.txt")
            assert extracted is not None
            assert extracted.read() == b"tar\n" * 999


# Writers of file systems


def pyfatfs(module: str) -> Any:
    # It imports what warns of its own age.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"pyfatfs.{module}", reason="needs pyfatfs")


@pytest.fixture
def fat(tmp_path: Path) -> Path:
    """Make a disk with an empty FAT file system, and a child of it; return their folder."""
    pyfat = pyfatfs("PyFat").PyFat
    raw = tmp_path / "empty.raw"
    raw.write_bytes(bytes(8 << 20))
    made = pyfat()
    made.mkfs(str(raw), fat_type=pyfat.FAT_TYPE_FAT16, size=8 << 20)
    made.close()
    vhdkit.create_image(tmp_path / "base.vhd", size=8 << 20)
    with vhdkit.open_chain(tmp_path / "base.vhd", writable=True) as chain:
        chain.write(0, raw.read_bytes())
    vhdkit.create_image(tmp_path / "child.avhd", parent=tmp_path / "base.vhd")
    return tmp_path


def test_pyfatfs_writes_files_through_a_stream_into_the_child_alone(fat: Path) -> None:
    contents = {f"FILE{number}.BIN": bytes([number + 1]) * (number * 3000 + 1) for number in range(12)}
    base = (fat / "base.vhd").read_bytes()
    with (
        vhdkit.open_chain(fat / "child.avhd", writable=True) as chain,
        # It closes the stream.
        pyfatfs("PyFatFS").PyFatBytesIOFS(chain.open_stream()) as system,
    ):
        system.makedir("/SUB")
        for name, content in contents.items():
            with system.openbin(f"/SUB/{name}", "w") as file:
                file.write(content)
        system.remove("/SUB/FILE3.BIN")
    del contents["FILE3.BIN"]
    assert (fat / "base.vhd").read_bytes() == base
    assert vhdkit.check(fat / "child.avhd").findings == ()
    # Read back by another program, from a raw file.
    vhdkit.convert(fat / "child.avhd", fat / "view.raw", output_format="raw")
    reader = pytest.importorskip("dissect.fat.fat", reason="needs dissect.fat")
    with (fat / "view.raw").open("rb") as view:
        found = dict(files_below(reader.FATFS(view).root, ""))
    assert found == {f"SUB/{name}": content for name, content in contents.items()}
