"""Copying a view to a new file (vhdkit/chain/copy_view.py): what the property tests do not see."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.plainbuild import ImageSpec, build
from tests.plainvhd import DIFFERENCING, SECTOR, flat, parse, round_up
from vhdkit.chain import batch_copier
from vhdkit.storage.local_file import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.storage.protocols import Syncing


def fail(path: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


@pytest.mark.parametrize("output", ["raw", "dynamic"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_sync_that_was_begun_and_failed_fails_the_copy(
    output: Any, which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of lost writes once: the last sync would say that all is well."""
    source, target = tmp_path / "a.vhd", tmp_path / ("b.raw" if output == "raw" else "b.vhd")
    vhdkit.create_image(source, size=64 << 20)
    with vhdkit.open_chain(source, writable=True) as chain:
        for block in range(32):
            # Less than is copied from file to file.
            chain.write(block << 21, b"x" * 8192)
        chain.sync()
    monkeypatch.setattr(batch_copier, "_SYNC_BYTES", 65536)
    begun = [0]
    sync = LocalStorage.begin_sync

    def failing(self: LocalStorage) -> Syncing:
        """Sync at once, so that the next one begins whatever else the machine does."""
        begun[0] += 1
        with monkeypatch.context() as patch:
            if begun[0] == which:
                patch.setattr(self, "sync", partial(fail, self.path), raising=False)
            done = sync(self)
            while not done.is_done():
                time.sleep(0.001)
        return done

    monkeypatch.setattr(LocalStorage, "begin_sync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        vhdkit.convert(source, target, output_format=output)
    assert begun[0] >= which
    assert sorted(os.listdir(tmp_path)) == ["a.vhd"]


@pytest.mark.parametrize("length", [700_001, (1 << 20) - 100, (1 << 20) + 100, (6 << 20) - 3])
@pytest.mark.parametrize("output", ["raw", "fixed", "dynamic", "to"])
def test_a_raw_parent_that_ends_inside_of_a_sector_is_copied_with_zeros(
    output: Any, length: int, tmp_path: Path
) -> None:
    raw, child, target = tmp_path / "p.raw", tmp_path / "c.avhd", tmp_path / f"n.{'raw' if output == 'raw' else 'vhd'}"
    content = bytes(range(1, 251)) * (length // 250 + 1)
    raw.write_bytes(content[:length])
    size = round_up(length, SECTOR)
    spec = ImageSpec(size=size, block_size=2 << 20, disk_type=DIFFERENCING, unique_id=b"c" * 16, parent_id=bytes(16))
    child.write_bytes(build(spec))
    if output == "to":
        vhdkit.merge(vhdkit.plan_merge(child, to=target, parent=raw))
    else:
        vhdkit.convert(child, target, output_format=output, parent=raw)
    made = target.read_bytes()
    view = made if output == "raw" else flat([parse(made)]).tobytes()
    assert view == content[:length].ljust(size, b"\0")


@pytest.mark.parametrize("output", ["fixed", "dynamic", "to"])
def test_zeros_that_a_layer_holds_take_no_space_in_a_copy(output: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "a.vhd", tmp_path / "b.vhd"
    vhdkit.create_image(source, size=64 << 20)
    with vhdkit.open_chain(source, writable=True) as chain:
        for block in range(32):
            chain.write(block << 21, b"x" * 4096)
            chain.write((block << 21) + 4096, bytes((2 << 20) - 4096))
    if output == "to":
        vhdkit.merge(vhdkit.plan_merge(source, to=target))
    else:
        vhdkit.convert(source, target, output_format=output)
    assert vhdkit.compare(source, target).equal
    assert target.stat().st_blocks * 512 < 2 << 20


class StoppedError(Exception):
    """What a progress function raises."""


def compare_with_copy(source: Path, copy: Path, stop: Callable[[vhdkit.Progress], None]) -> None:
    shutil.copyfile(source, copy)
    try:
        vhdkit.compare(source, copy, progress=stop)
    finally:
        copy.unlink()


VERBS: dict[str, Callable[[Path, Path, Callable[[vhdkit.Progress], None]], object]] = {
    "raw": lambda a, b, stop: vhdkit.convert(a, b.with_suffix(".raw"), output_format="raw", progress=stop),
    "dynamic": lambda a, b, stop: vhdkit.convert(a, b, progress=stop),
    "compare": compare_with_copy,
    "hash": lambda a, _, stop: vhdkit.hash_image(a, progress=stop),
    "merge --to": lambda a, b, stop: vhdkit.merge(vhdkit.plan_merge(a, to=b), progress=stop),
}


def stop(_progress: vhdkit.Progress) -> None:
    raise StoppedError


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_verb_that_is_stopped_half_way_leaves_no_file_open_and_no_thread(
    verb: Callable[[Path, Path, Callable[[vhdkit.Progress], None]], object], tmp_path: Path
) -> None:
    source = tmp_path / "a.vhd"
    vhdkit.create_image(source, size=64 << 20)
    with vhdkit.open_chain(source, writable=True) as chain:
        for block in range(32):
            chain.write(block << 21, b"x" * (1 << 20))
    before = threading.active_count()
    with pytest.raises(StoppedError):
        verb(source, tmp_path / "b.vhd", stop)
    assert threading.active_count() == before
    with vhdkit.open_chain(source, writable=True):
        assert os.listdir(tmp_path) == ["a.vhd"]
