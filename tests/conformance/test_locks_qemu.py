"""qemu and vhdkit refuse each other where they would do harm, and read together where not."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.conformance.tools import requires, run
from tests.keeping import keep
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="qemu's locks are told by /proc")

SIZE = 1 << 20
# The byte that a qemu holds last: it resizes the file, or it lets nobody else.
WRITES, READS = 103, 203
PROGRAMS = {
    "qemu-io": ["qemu-io", "-f", "vpc"],
    "qemu-nbd": ["qemu-nbd", "-f", "vpc", "-t", "-k"],
    "qemu-img": ["qemu-img", "bench", "-f", "vpc", "-w", "-c", "100000000"],
}


@pytest.fixture(params=["dynamic", "fixed"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    vhdkit.create_image(str(path), size=SIZE, disk_type=request.param)
    return path


@contextmanager
def qemu(words: list[str], image: Path, byte: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let a qemu have the image open, for as long as the block takes."""
    requires(words[0])
    if words[-1] == "-k":
        words = [*words, str(image.with_name("socket"))]
    pipe = subprocess.PIPE
    with subprocess.Popen([*words, str(image)], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            end = time.monotonic() + 20
            while not holds(process.pid, byte):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end, words
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def holds(process: int, byte: int) -> bool:
    """Whether a process holds a lock that covers the byte."""
    for info in Path(f"/proc/{process}/fdinfo").iterdir():
        try:
            lines = [line.split() for line in info.read_text().splitlines() if line.startswith("lock:")]
        except FileNotFoundError:
            continue
        if any(int(words[7]) <= byte <= int(words[8]) for words in lines):
            return True
    return False


def refused_by_qemu(*words: str | Path) -> str:
    requires(str(words[0]))
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode != 0
    return done.stderr.decode()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("writable", [False, True])
def test_what_a_qemu_writes_to_is_neither_read_nor_written(image: Path, program: str, writable: bool) -> None:
    with qemu(PROGRAMS[program], image, WRITES) as process:
        with pytest.raises(vhdkit.ImageInUseError) as caught:
            vhdkit.open_chain(str(image), writable=writable)
        assert caught.value.holders == (f"{program} (process {process.pid})",)
        with pytest.raises(vhdkit.ImageInUseError):
            vhdkit.create_image(str(image.with_name("child.avhd")), parent=str(image))
        vhdkit.open_chain(str(image), lock=False).close()
        vhdkit.open_image(str(image)).close()
    with vhdkit.open_chain(str(image), writable=writable):
        pass


def test_what_a_qemu_reads_is_read_and_not_written(image: Path) -> None:
    with qemu(["qemu-io", "-r", "-f", "vpc"], image, READS) as process:
        with vhdkit.open_chain(str(image)) as chain:
            assert not any(chain.read(0, SIZE))
        with pytest.raises(vhdkit.ImageInUseError) as caught:
            vhdkit.open_chain(str(image), writable=True)
        assert caught.value.holders == (f"qemu-io (process {process.pid})",)


def test_what_vhdkit_reads_a_qemu_reads_and_does_not_write(image: Path) -> None:
    with vhdkit.open_chain(str(image)):
        assert "lock" in refused_by_qemu("qemu-io", "-f", "vpc", "-c", "write 0 512", image)
        run("qemu-io", "-r", "-f", "vpc", "-c", "read 0 512", image)
        run("qemu-img", "info", "-f", "vpc", image)
    run("qemu-io", "-f", "vpc", "-c", "write 0 512", image)


def test_what_vhdkit_writes_a_qemu_neither_reads_nor_writes(image: Path) -> None:
    with vhdkit.open_chain(str(image), writable=True) as chain:
        chain.write(0, b"mine")
        for words in (
            ["qemu-io", "-f", "vpc", "-c", "write 0 512"],
            ["qemu-io", "-r", "-f", "vpc", "-c", "read 0 512"],
            ["qemu-img", "info", "-f", "vpc"],
        ):
            message = refused_by_qemu(*words, image)
            assert "Failed to get" in message
            assert "lock" in message
        run("qemu-img", "info", "-U", "-f", "vpc", image)
    run("qemu-img", "info", "-f", "vpc", image)


def test_a_raw_file_that_a_qemu_writes_to_is_not_read(tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(SIZE))
    with qemu(["qemu-io", "-f", "raw"], raw, 101) as process:
        with pytest.raises(vhdkit.ImageInUseError) as caught:
            vhdkit.compare(str(raw), str(raw))
        assert caught.value.holders == (f"qemu-io (process {process.pid})",)
        assert vhdkit.compare(str(raw), str(raw), lock=False).equal
    assert vhdkit.compare(str(raw), str(raw)).equal


def test_a_lock_through_a_descriptor_for_reading_keeps_a_qemu_out(image: Path) -> None:
    """As a merge holds its sources: it takes them away and writes nothing to them."""
    storage = keep(LocalFolder().open(str(image)))
    storage.lock(exclusive=True)
    assert "lock" in refused_by_qemu("qemu-img", "info", "-f", "vpc", image)
    storage.lock(exclusive=False)
    run("qemu-img", "info", "-f", "vpc", image)
    storage.close()
