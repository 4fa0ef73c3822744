"""Disks with file systems in them, made by the tools of those, and laid over the layers of a chain."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

import vhdkit
from tests.conformance.tools import requires

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIB = 1 << 20
# Where mkfs and mkntfs are for users, too.
SYSTEM_PATH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
TEXT = b"hello from the guest\n"
BIG = bytes(range(256)) * 1200


def tool(*words: str | Path, stdin: bytes = b"") -> bytes:
    """Run a program that makes or changes a file system; skip the test where it is not installed."""
    program = str(words[0])
    if not any(os.access(f"{folder}/{program}", os.X_OK) for folder in SYSTEM_PATH.split(os.pathsep)):
        requires(program)
    environment = {**os.environ, "PATH": SYSTEM_PATH}
    done = subprocess.run(words, input=stdin, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, (words, done.stdout[-500:], done.stderr[-1000:])
    return done.stdout


def tree(folder: Path) -> Path:
    """Make files for a guest."""
    (folder / "dir" / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(TEXT)
    (folder / "dir" / "big").write_bytes(BIG)
    (folder / "dir" / "sub" / "deep").write_bytes(b"deep\n")
    (folder / "empty").touch()
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    with (folder / "sparse").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(2 * MIB)
        file.write(b"end")
    with open(os.fsencode(folder) + b"/odd\xff\n\x1b[31m", "wb") as file:
        file.write(b"odd")
    return folder


def ext4(image: Path, source: Path) -> Path:
    """Make an ext4 file system with the files of a folder."""
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    tool("mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", "-E", "lazy_itable_init=0", "-d", source, image)
    return image


def fat(image: Path, source: Path) -> Path:
    """Make a FAT file system with the plain files of a folder."""
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    tool("mkfs.fat", "-n", "LABEL", image)
    tool("mmd", "-i", image, "::dir", "::dir/sub")
    for name in ("a.txt", "dir/big", "dir/sub/deep", "empty"):
        tool("mcopy", "-i", image, source / name, f"::{name}")
    return image


def ntfs(image: Path, source: Path) -> Path:
    """Make an NTFS with two files."""
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    tool("mkntfs", "-F", "-q", image)
    tool("ntfscp", image, source / "a.txt", "a.txt")
    tool("ntfscp", image, source / "dir" / "big", "big")
    return image


def debugfs(image: Path, *commands: str) -> None:
    """Change an ext4 file system."""
    tool("debugfs", "-w", "-f", "-", image, stdin="\n".join(commands).encode())


def in_layers(folder: Path, *states: bytes) -> Path:
    """Make a chain whose layers show these disks, from the base up; return the leaf."""
    folder.mkdir(exist_ok=True)
    path = folder / "layer-0.vhd"
    vhdkit.create_image(path, size=len(states[0]), block_size=64 << 10)
    _write(path, bytes(len(states[0])), states[0])
    for number, (below, above) in enumerate(pairwise(states), 1):
        parent, path = path, folder / f"layer-{number}.avhd"
        vhdkit.create_image(path, parent=parent)
        _write(path, below, above)
    return path


def spread_over_layers(folder: Path, content: bytes, count: int) -> Path:
    """Make a chain that shows a disk, of which each layer holds every so many stretches of 4 KiB."""
    states: Sequence[bytearray] = [bytearray(len(content)) for _ in range(count)]
    for number, state in enumerate(states):
        for at in range(0, len(content), 4096):
            if at // 4096 % count <= number:
                state[at : at + 4096] = content[at : at + 4096]
    return in_layers(folder, *map(bytes, states))


def _write(path: Path, below: bytes, content: bytes) -> None:
    """Write the sectors that differ."""
    differs = np.frombuffer(below, np.uint8).reshape(-1, 512) != np.frombuffer(content, np.uint8).reshape(-1, 512)
    edges = np.flatnonzero(np.diff(differs.any(axis=1).astype(np.int8), prepend=0, append=0))
    with vhdkit.open_chain(path, writable=True) as chain:
        for start, stop in (edges.reshape(-1, 2) * 512).tolist():
            chain.write(start, content[start:stop])
