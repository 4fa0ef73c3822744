"""A file that another process opens is noticed, and how often this one has it open is known."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from vhdkit.storage.open_watch import InotifyWatch, NoWatch, Openings, is_open_elsewhere, open_watch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"disk")
    return path


def test_an_opening_and_the_closing_of_a_writer_are_noticed_once(disk: Path) -> None:
    with InotifyWatch() as watch:
        watch.watch(str(disk))
        watch.watch(str(disk))
        assert watch.take(str(disk)) == Openings()
        with disk.open("rb"):
            watch.wait(60)
            assert watch.take(str(disk)) == Openings(is_opened=True)
        assert watch.take(str(disk)) == Openings()
        disk.open("r+b").close()
        assert watch.take(str(disk)) == Openings(is_opened=True, is_closed_by_writer=True)
        assert watch.take(str(disk)) == Openings()


def test_what_is_forgotten_or_gone_is_watched_no_longer(disk: Path) -> None:
    with InotifyWatch() as watch:
        watch.watch(str(disk))
        watch.forget(str(disk))
        watch.forget(str(disk))
        disk.read_bytes()
        assert watch.take(str(disk)) == Openings()
        watch.watch(str(disk))
        disk.unlink()
        assert watch.take(str(disk)) == Openings()
        with pytest.raises(FileNotFoundError):
            watch.watch(str(disk))
        disk.write_bytes(b"another")
        watch.watch(str(disk))
        disk.read_bytes()
        assert watch.take(str(disk)).is_opened


def test_who_has_a_file_open_under_any_name_is_found(disk: Path, tmp_path: Path) -> None:
    own = os.getpid()
    (tmp_path / "link").symlink_to(disk)
    assert not is_open_elsewhere(str(disk), ())
    with (tmp_path / "link").open("rb"):
        assert is_open_elsewhere(str(disk), ())
        assert not is_open_elsewhere(str(disk), {own})
    assert not is_open_elsewhere(str(tmp_path / "gone"), ())


def test_where_nothing_can_be_watched_nothing_is_noticed(disk: Path) -> None:
    watch = NoWatch()
    watch.watch(str(disk))
    disk.read_bytes()
    watch.wait(0)
    assert watch.take(str(disk)) == Openings()
    watch.forget(str(disk))
    watch.close()
    found = open_watch()
    assert isinstance(found, InotifyWatch)
    found.close()
