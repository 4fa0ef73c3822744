"""Which tool reads what: `python -m benchmarks.readers` writes the table of docs/readers.md.

Small disks of every kind are written by the tests' own writers, so that what each shows is known without any reader.
Each tool makes a raw file of each, and the bytes are compared. A tool that is not installed has no column.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rivals import VHDKIT
from tests import plainvhdx
from tests.model import Create, Kind, ModelChain, Snapshot, Write, write_files
from tests.plainvhdx import BAT_AT, UNMAPPED, ZERO, left_dirty
from tests.vhdx_chains import disk_of, name_of, view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTOR = 512
MIB = 1 << 20
COUNT = 4 * MIB // SECTOR
SECONDS = 60  # a tool that takes longer for 4 MiB hangs
_LIBVHDI = """
import sys, pyvhdi
files = []
for path in sys.argv[2:]:
    one = pyvhdi.file()
    one.open(path)
    files.append(one)
for child, parent in reversed(list(zip(files, files[1:]))):
    child.set_parent(parent)
out = open(sys.argv[1], "wb")
size, at = files[0].get_media_size(), 0
while at < size:
    data = files[0].read_buffer_at_offset(min(1 << 20, size - at), at)
    assert data
    out.write(data)
    at += len(data)
"""
_DISSECT = """
import sys
from pathlib import Path
if sys.argv[2].endswith("x"):
    from dissect.hypervisor.disk.vhdx import VHDX as Disk
else:
    from dissect.hypervisor.disk.vhd import VHD as Disk
path = Path(sys.argv[2])
disk = Disk(path if path.suffix.endswith("x") else path.open("rb"))
Path(sys.argv[1]).write_bytes(disk.read(disk.size))
"""


class Sample(NamedTuple):
    """A chain of files, leaf first, and the bytes that it shows."""

    name: str
    paths: list[Path]
    content: bytes


def chain(kind: Kind = Kind.DYNAMIC, layers: int = 1, count: int = COUNT) -> ModelChain:
    """Return a disk with data at its start and in its middle, and layers over it that hold some sectors each."""
    model = ModelChain.run((Create(kind=kind, sector_count=count, block_size=2 * MIB),))
    model.apply(Write(offset=0, length=700 * SECTOR, fill=0x11))
    model.apply(Write(offset=3 * MIB + 5 * SECTOR, length=99 * SECTOR, fill=0x22))
    for number in range(1, layers):
        model.apply(Snapshot(block_size=2 * MIB))
        model.apply(Write(offset=(10 + number) * SECTOR, length=9 * SECTOR, fill=0x30 + number))
        model.apply(Write(offset=100 * SECTOR, length=SECTOR, fill=0))
    return model


def samples(folder: Path) -> Iterator[Sample]:
    """Write and yield one of every kind, each in a folder of its own."""

    def place(name: str) -> Path:
        found = folder / name
        found.mkdir()
        return found

    for name, model in (
        ("VHD, fixed", chain(Kind.FIXED)),
        ("VHD, dynamic", chain()),
        ("AVHD over two layers", chain(layers=3)),
    ):
        # Of other makers qemu takes the disk for as large as its geometry says.
        paths = write_files(model, place(name), lambda spec: replace(spec, creator_app=b"win "))
        yield Sample(name, paths, model.view().tobytes())

    def vhdx(
        name: str, model: ModelChain, sector: int = SECTOR, change: Callable[[int, bytes], bytes] | None = None
    ) -> Sample:
        home, paths = place(name), []
        for depth in range(len(model.layers)):
            raw = plainvhdx.write(disk_of(model, depth, sector))
            paths.append(home / name_of(model, depth).rpartition("/")[2])
            paths[-1].write_bytes(change(depth, raw) if change else raw)
        return Sample(name, paths, view(model, sector))

    yield vhdx("VHDX, fixed", chain(Kind.FIXED))
    yield vhdx("VHDX, dynamic", chain())
    yield vhdx("VHDX, an odd number of sectors", chain(count=COUNT - 1))
    yield vhdx("VHDX, sectors of 4096 bytes", chain(), 4096)
    yield vhdx("VHDX, one header torn", chain(), change=lambda _, raw: raw[: 129 << 10] + b"x" + raw[(129 << 10) + 1 :])
    dirty = chain()
    yield vhdx(
        "VHDX, log not replayed", dirty, change=lambda depth, _: left_dirty(disk_of(dirty, depth, SECTOR), [BAT_AT])
    )
    yield vhdx("AVHDX over two layers", chain(layers=3))
    yield hiding(place("AVHDX with zeroed and trimmed blocks"))
    three = chain(layers=3)
    yield vhdx(
        "AVHDX, its parent's log not replayed",
        three,
        change=lambda depth, raw: left_dirty(disk_of(three, depth, SECTOR), [BAT_AT]) if depth == 1 else raw,
    )


def hiding(home: Path) -> Sample:
    """Return a child whose blocks hide the parent's data without holding any."""
    model = chain(layers=2)
    leaf = replace(disk_of(model, 0, SECTOR), blocks={0: (ZERO, b""), 1: (UNMAPPED, b"")})
    paths = [home / name_of(model, depth).rpartition("/")[2] for depth in (0, 1)]
    for path, disk in zip(paths, (leaf, disk_of(model, 1, SECTOR)), strict=True):
        path.write_bytes(plainvhdx.write(disk))
    return Sample(home.name, paths, bytes(COUNT * SECTOR))


class Tool(NamedTuple):
    """A program, whether it is here, and the command that makes a raw file of a chain."""

    name: str
    is_here: bool
    command: Callable[[str, list[str]], list[str]]


def _qemu(out: str, paths: list[str]) -> list[str]:
    return ["qemu-img", "convert", "-f", "vhdx" if paths[0].endswith("x") else "vpc", "-O", "raw", paths[0], out]


TOOLS = (
    Tool(
        "vhdkit",
        is_here=True,
        command=lambda out, paths: [*VHDKIT, "convert", "-O", "raw", paths[0], out, "--progress", "none"],
    ),
    Tool("qemu-img", shutil.which("qemu-img") is not None, _qemu),
    Tool(
        "7zz",
        shutil.which("7zz") is not None,
        lambda out, paths: ["sh", "-c", '7zz e -so "$1" > "$2"', "sh", paths[0], out],
    ),
    Tool(
        "libvhdi",
        find_spec("pyvhdi") is not None,
        lambda out, paths: [sys.executable, "-c", _LIBVHDI, out, *paths],
    ),
    Tool(
        "dissect.hypervisor",
        find_spec("dissect") is not None and find_spec("dissect.hypervisor") is not None,
        lambda out, paths: [sys.executable, "-c", _DISSECT, out, *paths],
    ),
)


def verdict(tool: Tool, sample: Sample, out: Path) -> str:
    """Return what comes of a tool and a sample, in a word or two."""
    out.unlink(missing_ok=True)
    command = tool.command(str(out), [str(path) for path in sample.paths])
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, cwd=sample.paths[0].parent)
    except subprocess.TimeoutExpired:
        return "hangs"
    found = out.read_bytes() if out.exists() else b""
    # qemu rounds the size of some VHDs up to whole cylinders.
    if found[: len(sample.content)] == sample.content and not any(found[len(sample.content) :]):
        return "yes" if not done.returncode else "yes, exit code " + str(done.returncode)
    if done.returncode and len(found) < len(sample.content):
        return "refuses"
    return "**wrong bytes**" if not done.returncode else f"**wrong bytes**, exit code {done.returncode}"


def table() -> str:
    """Return the table as Markdown."""
    tools = [tool for tool in TOOLS if tool.is_here]
    lines = ["| | " + " | ".join(tool.name for tool in tools) + " |", "|---" * (len(tools) + 1) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for sample in samples(Path(folder)):
            found = [verdict(tool, sample, Path(folder, "out.raw")) for tool in tools]
            lines.append(f"| {sample.name} | " + " | ".join(found) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
