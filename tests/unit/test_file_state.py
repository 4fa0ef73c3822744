"""States of files: equal ones prove that a file was not touched, and nothing else proves anything."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.keeping import keep
from vhdkit.journal.file_state import Seen
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def seen(path: Path, *, later: float = 60.0) -> Seen:
    storage = LocalFolder().open(str(path))
    state = Seen.of(storage, storage.ctime + later)
    storage.close()
    return state


def proves(state: Seen, path: Path) -> bool:
    storage = LocalFolder().open(str(path))
    is_proven = state.proves(storage)
    storage.close()
    return is_proven


def test_a_file_that_was_not_touched_is_proven(file: Path) -> None:
    state = seen(file)
    assert proves(state, file)
    assert msgspec.json.decode(msgspec.json.encode(state), type=Seen) == state


def put_back(path: Path) -> None:
    shutil.copy2(path, path.with_name("backup"))
    os.replace(path.with_name("backup"), path)


def write_again(path: Path) -> None:
    times = os.stat(path)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [put_back, write_again, lambda path: os.chmod(path, 0o640)])
def test_whatever_was_done_to_it_nothing_is_proven_any_more(file: Path, change: Callable[[Path], object]) -> None:
    state = seen(file)
    # Longer than a step of the file system's clock.
    time.sleep(0.02)
    change(file)
    assert not proves(state, file)


def test_a_state_taken_in_the_step_of_the_last_change_proves_nothing(file: Path) -> None:
    assert not proves(seen(file, later=0.0), file)


def test_where_there_are_no_change_times_nothing_is_proven() -> None:
    folder = MemoryFolder({"/a": b"content"})
    assert not Seen.of(keep(folder.open("/a")), 1e9).proves(keep(folder.open("/a")))
