"""What other programs read from a differencing disk: `python examples/other_readers.py LEAF`.

Each reads the disk that LEAF shows, and the result is compared with what the chain holds. A sector that has data in a
layer below and is read as zeros is data lost without an error.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import vhdkit

if TYPE_CHECKING:
    from collections.abc import Callable

SECTOR = 512


def by_qemu(leaf: str) -> bytes:
    """Return what qemu-img converts; it exits with 0."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "disk.img")
        subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", leaf, str(raw)], check=True)  # noqa: S607
        return raw.read_bytes()


def by_dissect(leaf: str) -> bytes:
    """Return what dissect.hypervisor reads; it raises nothing."""
    from dissect.hypervisor.disk.vhd import VHD  # noqa: PLC0415 - it may be missing

    with open(leaf, "rb") as file:
        disk = VHD(file)
        return bytes(disk.read(disk.size))


def readers() -> dict[str, Callable[[str], bytes]]:
    """Return the programs that are installed, by name and version."""
    found: dict[str, Callable[[str], bytes]] = {}
    if shutil.which("qemu-img"):
        words = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True)  # noqa: S607
        found[f"qemu-img {words.stdout.split()[2]}"] = by_qemu
    if find_spec("dissect") and find_spec("dissect.hypervisor"):
        found[f"dissect.hypervisor {version('dissect.hypervisor')}"] = by_dissect
    return found


def lost(right: bytes, read: bytes) -> int:
    """Return how many sectors with data are read as zeros."""
    starts = range(0, len(right), SECTOR)
    return sum(any(right[at : at + SECTOR]) and not any(read[at : at + SECTOR]) for at in starts)


def main(leaf: str) -> None:
    """Print what each reader loses."""
    with vhdkit.open_chain(leaf) as chain:
        right = bytes(chain.read(0, chain.size))
    held = lost(right, bytes(len(right)))
    for name, read in readers().items():
        print(f"{name}: {lost(right, read(leaf))} of {held} sectors with data are read as zeros, without an error")


if __name__ == "__main__":
    main(sys.argv[1])
