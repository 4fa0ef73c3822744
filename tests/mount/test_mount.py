"""A chain that the kernel mounts: programs read it, write it, and it goes away as it should."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import environment, program, spawn
from tests.conformance.tools import requires
from tests.serve.disks import SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.model import ModelChain

WAIT_SECONDS = 30
LEAF = "layers/0-layer-2.avhd.raw"


@pytest.fixture(autouse=True)
def _programs() -> None:
    requires("fusermount3")
    pytest.importorskip("mfusepy", reason="needs mfusepy")


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    folder = tmp_path / "a, mnt"
    folder.mkdir()
    return folder


@contextmanager
def mounted(leaf: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Mount by the program, lend its process, and unmount whatever is left."""
    process = subprocess.Popen(
        program("mount", str(leaf), str(folder), *options),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("mounted on ")
        yield process
    finally:
        subprocess.run(["fusermount3", "-u", "-z", folder], check=False, capture_output=True)
        process.kill()
        process.communicate()


def test_programs_read_what_the_model_shows(model: ModelChain, leaf: Path, mnt: Path) -> None:
    with mounted(leaf, mnt):
        assert (mnt / "disk.raw").read_bytes() == model.read(0, SIZE)
        for depth, path in enumerate(sorted((mnt / "layers").iterdir())):
            assert path.read_bytes() == model.read(0, SIZE, depth)
        assert '"virtual-size": 307200' in (mnt / "info.json").read_text()
        with pytest.raises(OSError, match="Read-only"):
            (mnt / "disk.raw").open("r+b")
        with (mnt / "disk.raw").open("rb") as file:
            hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
            assert hole == next(at for at, source in enumerate(model.sources()) if source < 0) * 512
        with pytest.raises(vhdkit.ImageInUseError):
            vhdkit.open_chain(leaf, writable=True)


def test_what_programs_write_is_in_the_leaf(model: ModelChain, leaf: Path, mnt: Path) -> None:
    expected = bytearray(model.read(0, SIZE))
    expected[1000:6000] = b"w" * 5000
    with mounted(leaf, mnt, "--writable") as process:
        with (mnt / "disk.raw").open("r+b") as file:
            file.seek(1000)
            file.write(b"w" * 5000)
            file.flush()
            os.fsync(file.fileno())
        assert (mnt / "disk.raw").read_bytes() == expected
        assert (mnt / LEAF).read_bytes() == expected
        with pytest.raises(OSError, match="not permitted"):
            (mnt / "disk.raw").write_bytes(b"")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
    with vhdkit.open_chain(leaf) as chain:
        assert chain.read(0, SIZE) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts_it(leaf: Path, mnt: Path, number: signal.Signals) -> None:
    with mounted(leaf, mnt) as process:
        process.send_signal(number)
        assert process.wait(WAIT_SECONDS) == 0
        assert list(mnt.iterdir()) == []


def test_unmounting_ends_the_program(leaf: Path, mnt: Path) -> None:
    with mounted(leaf, mnt) as process:
        subprocess.run(["fusermount3", "-u", mnt], check=True)
        assert process.wait(WAIT_SECONDS) == 0
    vhdkit.open_chain(leaf, writable=True).close()


def test_a_killed_program_leaves_no_mount_and_no_lock(leaf: Path, mnt: Path) -> None:
    with mounted(leaf, mnt) as process:
        process.kill()
        process.wait()
        until = time.monotonic() + WAIT_SECONDS
        while os.path.ismount(mnt) or not _can_be_listed(mnt):
            assert time.monotonic() < until
            time.sleep(0.02)
        vhdkit.open_chain(leaf, writable=True).close()


def _can_be_listed(folder: Path) -> bool:
    try:
        os.listdir(folder)
    except OSError:
        return False
    return True


def test_a_folder_that_is_not_there_is_an_error(leaf: Path, tmp_path: Path) -> None:
    assert "nowhere" in spawn("mount", str(leaf), "nowhere", cwd=tmp_path).refused()
    assert spawn("mount", str(leaf), ".", "--writable", "-U", cwd=tmp_path).code == 64
