"""The folder that a chain is mounted as, without a kernel: its files are what the model shows at each layer."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.keeping import keep
from tests.serve.disks import SIZE
from vhdkit.errors import MissingExtraError
from vhdkit.serve.mounted_files import SEEK_DATA, SEEK_HOLE, MountedChain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model import ModelChain

LAYERS = ["layers/0-layer-2.avhd.raw", "layers/1-layer-1.avhd.raw", "layers/2-layer-0.vhd.raw"]


@pytest.fixture
def files(leaf: Path) -> MountedChain:
    return MountedChain(keep(vhdkit.open_chain(leaf)))


@pytest.fixture
def writable(leaf: Path) -> MountedChain:
    return MountedChain(keep(vhdkit.open_chain(leaf, writable=True)))


def read(files: MountedChain, path: str, offset: int, length: int) -> bytes:
    buffer = bytearray(b"?" * length)
    count = files.read_into(path, offset, memoryview(buffer))
    return bytes(buffer[:count])


def refusal(number: int, attempt: object) -> None:
    assert callable(attempt)
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        attempt()
    assert caught.value.errno == number


def test_the_folder_has_the_disk_its_layers_and_what_they_are(files: MountedChain, leaf: Path) -> None:
    assert files.names("/") == [".", "..", "disk.raw", "layers", "info.json"]
    assert [f"layers/{name}" for name in files.names("/layers")[2:]] == LAYERS
    info = json.loads(read(files, "/info.json", 0, 1 << 20))
    assert info["virtual-size"] == SIZE
    assert info["layers"][0]["filename"] == str(leaf)
    assert [layer["disk-type"] for layer in info["layers"]] == ["differencing", "differencing", "dynamic"]


def test_each_layer_reads_as_the_model_says(files: MountedChain, model: ModelChain) -> None:
    for path, depth in [("disk.raw", 0), *((path, depth) for depth, path in enumerate(LAYERS))]:
        assert read(files, f"/{path}", 0, SIZE + 100) == model.read(0, SIZE, depth)
        assert read(files, f"/{path}", 12_000, 900) == model.read(12_000, 900, depth)
        assert read(files, f"/{path}", SIZE, 100) == b""
        assert read(files, f"/{path}", SIZE + 5, 100) == b""


def test_holes_are_where_no_layer_holds_anything(files: MountedChain, model: ModelChain) -> None:
    for depth, path in enumerate(LAYERS):
        held = [source >= 0 for source in model.sources(depth)]
        found, at = [], 0
        while at < SIZE:
            hole = files.seek(f"/{path}", at, SEEK_HOLE)
            found += [True] * ((hole - at) // 512)
            if hole == SIZE:
                break
            at = SIZE
            with suppress(OSError):  # there are no more data
                at = files.seek(f"/{path}", hole, SEEK_DATA)
            found += [False] * ((at - hole) // 512)
        assert found == held
        assert files.attributes(f"/{path}")["st_blocks"] == sum(held)


def test_seeking_behind_the_end_finds_nothing(files: MountedChain) -> None:
    refusal(errno.ENXIO, lambda: files.seek("/disk.raw", SIZE, SEEK_HOLE))
    refusal(errno.EINVAL, lambda: files.seek("/disk.raw", 0, 7))


def test_files_are_described(files: MountedChain) -> None:
    found = files.attributes("/disk.raw")
    assert (found["st_size"], stat.filemode(found["st_mode"])) == (SIZE, "-r--r--r--")
    assert stat.S_ISDIR(files.attributes("/layers")["st_mode"])
    refusal(errno.ENOENT, lambda: files.attributes("/nope"))
    refusal(errno.ENOTDIR, lambda: files.names("/disk.raw"))
    refusal(errno.EISDIR, lambda: read(files, "/layers", 0, 1))


def test_nothing_is_written_to_what_is_mounted_for_reading(files: MountedChain) -> None:
    refusal(errno.EROFS, lambda: files.check_open("/disk.raw", writing=True))
    refusal(errno.EROFS, lambda: files.write("/disk.raw", 0, b"x"))
    assert not files.changes("/disk.raw")


def test_the_disk_alone_can_be_written_and_its_layer_follows(writable: MountedChain, model: ModelChain) -> None:
    assert writable.write("/disk.raw", 100, b"new" * 500) == 1500
    expected = bytearray(model.read(0, SIZE))
    expected[100:1600] = b"new" * 500
    for path in ("/disk.raw", f"/{LAYERS[0]}"):
        assert read(writable, path, 0, SIZE) == expected
        assert writable.changes(path)
    assert read(writable, f"/{LAYERS[1]}", 0, SIZE) == model.read(0, SIZE, 1)
    assert not writable.changes(f"/{LAYERS[1]}")
    for path in (f"/{LAYERS[0]}", f"/{LAYERS[1]}", "/info.json"):
        refusal(errno.EROFS, lambda path=path: writable.check_open(path, writing=True))
    writable.sync("/disk.raw")


def test_the_disk_keeps_its_size(writable: MountedChain) -> None:
    assert writable.write("/disk.raw", SIZE - 2, b"four") == 2
    refusal(errno.ENOSPC, lambda: writable.write("/disk.raw", SIZE, b"x"))
    refusal(errno.EPERM, lambda: writable.truncate("/disk.raw", 0))
    writable.truncate("/disk.raw", SIZE)


def test_a_damaged_image_is_a_medium_that_cannot_be_read(leaf: Path, files: MountedChain) -> None:
    base = leaf.parent / "layer-0.vhd"
    os.truncate(base, base.stat().st_size - 512 - 4000)
    refusal(errno.EIO, lambda: read(files, "/disk.raw", 229_376, 4096))


def test_without_the_library_its_extra_is_named(leaf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    with vhdkit.open_chain(leaf) as chain, pytest.raises(MissingExtraError, match=r"vhdkit\[mount\]"):
        vhdkit.mount_chain(chain, tmp_path)
