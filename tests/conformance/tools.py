"""Other people's programs, asked what they think of a file (corpus README, "Oracles": what each can be believed in).

All are told the format, as none of them recognises a fixed VHD by itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.plainvhd import SECTOR, Footer

if TYPE_CHECKING:
    from pathlib import Path

# qemu believes current_size of these makers only; to the disks of others it gives the size of their geometry (1.10).
BELIEVED_BY_QEMU: Final = {b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"}
MAX_GEOMETRY: Final = (65535, 16, 255)


def requires(program: str) -> None:
    """Skip the test where the program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")


def run(*words: str | Path) -> bytes:
    """Return what a program prints; it must succeed."""
    requires(str(words[0]))
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0, (words, done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return done.stdout


def qemu_size(image: Path) -> int:
    """Bytes of the disk as qemu-img sees it."""
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "vpc", image))
    assert told["format"] == "vpc"
    return int(told["virtual-size"])


def qemu_flat(image: Path, raw: Path) -> Path:
    """Let qemu-img write the content of one file, ignoring any parent."""
    run("qemu-img", "convert", "-f", "vpc", "-O", "raw", image, raw)
    return raw


def qemu_finds_equal(image: Path, raw: Path) -> None:
    """Let qemu-img hold a flat image against a raw file; it only warns of sizes that differ by zeros."""
    assert run("qemu-img", "compare", "-f", "vpc", "-F", "raw", image, raw) == b"Images are identical.\n"


def size_for_qemu(footer: Footer) -> int:
    """Bytes that qemu gives a disk, by the rule of 1.10."""
    chs = (footer.cylinders, footer.heads, footer.sectors_per_track)
    if footer.creator_app in BELIEVED_BY_QEMU or chs == MAX_GEOMETRY:
        return footer.current_size
    return footer.cylinders * footer.heads * footer.sectors_per_track * SECTOR


def sevenzip_view(image: Path) -> bytes:
    """Return the disk as 7-Zip reads it, through every parent that lies beside the image."""
    return run("7zz", "e", "-so", "-tvhd", image)


def sevenzip_size(image: Path) -> int:
    """Bytes of the disk as 7-Zip sees it, without reading them."""
    listing = run("7zz", "l", "-slt", "-tvhd", image).decode().partition("----------\n")[2]
    return int(_fields(listing, r" = ")["Size"])


def vhdiinfo(image: Path) -> dict[str, str]:
    """Return what libvhdi says, by its own words: `Disk type`, `Media size`, `Parent identifier` and others."""
    return _fields(run("vhdiinfo", image).decode(), r"\t*: ")


def vhdi_size(told: dict[str, str]) -> int:
    """Bytes of the disk as libvhdi sees it."""
    found = re.search(r"(\d+) bytes", told["Media size"])
    assert found is not None, told
    return int(found[1])


def vhdi_id(unique_id: bytes) -> str:
    """Write an id as libvhdi does: all of it big-endian."""
    return re.sub(r"^(.{8})(.{4})(.{4})(.{4})", r"\1-\2-\3-\4-", unique_id.hex())


def _fields(text: str, separator: str) -> dict[str, str]:
    pairs = (re.split(separator, line.strip(), maxsplit=1) for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
