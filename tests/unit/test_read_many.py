"""Many ranges of a file are read as by as many calls (vhdkit/storage/read_many.py)."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdkit.storage import read_many
from vhdkit.storage.local_file import LocalStorage
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.storage.portable_file import PortableStorage
from vhdkit.storage.read_many import read_one_by_one

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage

CONTENT = bytes(range(1, 252)) * 40


def opened(kind: str, folder: str) -> Storage:
    if kind == "memory":
        return MemoryFolder({"/file": CONTENT}).open("/file")
    path = Path(folder, "file")
    path.write_bytes(CONTENT)
    if kind == "local":
        return LocalFolder().open(str(path))
    return PortableStorage(os.open(path, os.O_RDONLY), str(path), writable=False)


def ranges(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap, length in steps:
        found.append((at + gap, length))
        at += gap + length
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["local", "portable", "memory"]),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 700)), max_size=20),
    st.integers(0, 600),
    st.integers(2, 9),
)
def test_ranges_are_read_as_one_by_one(kind: str, steps: list[tuple[int, int]], gap: int, most: int) -> None:
    asked = ranges(steps)
    offsets = [offset for offset, _ in asked]
    expected, found = ([memoryview(bytearray(length)) for _, length in asked] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder, opened(kind, folder) as storage:
        patch.setattr(read_many, "GAP_BYTES", gap)
        patch.setattr(read_many, "_MOST_BUFFERS", most)
        counts = read_one_by_one(storage, offsets, expected)
        assert storage.read_many_into(offsets, found) == counts
    assert [bytes(each) for each in found] == [bytes(each) for each in expected]


def test_ranges_near_each_other_are_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return preadv(descriptor, buffers, offset)

    (tmp_path / "file").write_bytes(bytes(200_000))
    monkeypatch.setattr(os, "preadv", counted)
    with LocalFolder().open(str(tmp_path / "file")) as storage:
        assert isinstance(storage, LocalStorage)
        offsets = [*range(0, 40_000, 1000), *range(100_000, 140_000, 1000)]
        storage.read_many_into(offsets, [memoryview(bytearray(512)) for _ in offsets])
    assert calls == [0, 100_000]


def test_more_ranges_than_a_call_takes_are_read(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "file").write_bytes(content)
    with LocalFolder().open(str(tmp_path / "file")) as storage:
        offsets = list(range(0, len(content), 2))
        buffers = [memoryview(bytearray(1)) for _ in offsets]
        assert storage.read_many_into(offsets, buffers) == [1] * len(offsets)
    assert b"".join(map(bytes, buffers)) == content[::2]


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "injected")

    (tmp_path / "file").write_bytes(CONTENT)
    monkeypatch.setattr(os, "preadv", fail)
    with LocalFolder().open(str(tmp_path / "file")) as storage:
        with pytest.raises(OSError, match="injected") as caught:
            storage.read_many_into([0, 600], [memoryview(bytearray(512)), memoryview(bytearray(512))])
        assert caught.value.filename == storage.path
