"""Who reads a disk as a file, in turn: through `open_stream`, and the raw file of the same content opened by `open`.

Each program works for so long that starting the interpreter is a small part of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import vhdkit
from benchmarks.images import Inputs
from benchmarks.measuring import Step
from benchmarks.rivals import Contender, UnavailableError
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    Maker = Callable[[], Contender]

_MIB = 1 << 20
_RUN_BYTES = 64 << 10
_LAYERS = 10
_FILES = 300
# Times that each program does its work, at full size.
_SMALL, _LISTINGS, _TSK_LISTINGS, _PASSES = 100_000, 40, 300, 48
_OPEN = """
import sys
path, count = sys.argv[1], int(sys.argv[2])
if path.endswith(".raw"):
    disk = open(path, "rb")
else:
    import vhdkit
    disk = vhdkit.open_chain(path).open_stream()
disk.seek(0, 2)
size = disk.tell()
"""
_SMALL_READS = """
import random
draw = random.Random(1)
total = 0
for _ in range(count):
    disk.seek(draw.randrange(size // 4096 - 1) * 4096)
    for _ in range(8):
        total += len(disk.read(512))
assert total == count * 4096, total
"""
_SEQUENTIAL = """
for _ in range(count):
    disk.seek(0)
    total = 0
    while data := disk.read(1 << 20):
        total += len(data)
    assert total == size, total
"""
_EXTFS = """
from dissect.extfs import ExtFS
for _ in range(count):
    found = [node.filename for node in ExtFS(disk).get("/").iterdir() if node.size]
    assert len(found) >= 300, len(found)
"""
_TSK = """
import pytsk3
class Disk(pytsk3.Img_Info):
    def __init__(self):
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)
    def read(self, offset, length):
        disk.seek(offset)
        return disk.read(length)
    def get_size(self):
        return size
    def close(self):
        pass
for _ in range(count):
    found = [(entry.info.name.name, entry.info.meta.size) for entry in pytsk3.FS_Info(Disk()).open_dir("/")
             if entry.info.meta]
    assert len(found) >= 300, len(found)
"""


class Layered(Inputs):
    """A raw disk, and a chain of layers with the same content: runs of 64 KiB, of each layer in turn."""

    def __init__(self, folder: str, layers: int, make: Callable[[Path], None]) -> None:
        self._layers, self._make = layers, make
        self.raw = os.path.join(folder, "disk.raw")
        super().__init__(Workload(f"{layers} layers", 0, ()), folder)

    def _names(self) -> list[str]:
        return [f"level{number:02}.vhd" for number in range(self._layers)]

    def restore(self, *, thorough: bool = False) -> None:
        """Make them, if they are not there."""
        del thorough
        if os.path.exists(self.paths[-1]):
            return
        self._make(Path(self.raw))
        content = Path(self.raw).read_bytes()
        for number, path in enumerate(self.paths):
            if number:
                vhdkit.create_image(path, parent=self.paths[number - 1])
            else:
                vhdkit.create_image(path, size=len(content))
            with vhdkit.open_chain(path, writable=True) as chain:
                for start in range(number * _RUN_BYTES, len(content), self._layers * _RUN_BYTES):
                    chain.write(start, content[start : start + _RUN_BYTES])


def _noise(size: int, raw: Path) -> None:
    """Write bytes that no two pages have in common."""
    with raw.open("wb") as file:
        for at in range(0, size, _MIB):
            file.write(b"".join((at + page).to_bytes(8, "big") * 512 for page in range(1, _MIB, 4096)))


def _names(folder: Path) -> list[Path]:
    """Make files that a listing finds."""
    folder.mkdir()
    found = [folder / f"file-with-a-name-{number:03}" for number in range(_FILES)]
    for number, path in enumerate(found):
        path.write_bytes(bytes([number % 251 + 1]) * (100 + number))
    return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _ext4(raw: Path) -> None:
    files = raw.parent / "files"
    _names(files)
    _run("mkfs.ext4", "-q", "-F", "-d", str(files), str(raw), "64M")
    shutil.rmtree(files)


def _ntfs(raw: Path) -> None:
    files = raw.parent / "files"
    with raw.open("wb") as file:
        file.truncate(64 * _MIB)
    _run("mkntfs", "-q", "-F", str(raw))
    for path in _names(files):
        _run("ntfscp", "-q", "-f", str(raw), str(path), path.name)
    shutil.rmtree(files)


def _is_importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _needing(inputs: Layered, needs: tuple[str, ...], name: str, step: Step) -> Contender:
    for need in needs:
        if shutil.which(need) is None and not _is_importable(need):
            raise UnavailableError(f"{need} is not installed")
    return Contender(name, inputs, (step,), lambda: None)


def makers(scale: float, at: Callable[[str], str]) -> dict[str, Maker]:
    """Return the makers of the contenders, by key; `at` returns the folder of a name."""
    size = max(8, round(256 * min(scale, 1))) * _MIB
    ext4_ten = Layered(at("ext4-ten"), _LAYERS, _ext4)
    one = Layered(at("one"), 1, partial(_noise, size))
    ten = Layered(at("ten"), _LAYERS, partial(_noise, size))
    ext4, ntfs = Layered(at("ext4"), 1, _ext4), Layered(at("ntfs"), _LAYERS, _ntfs)
    found: dict[str, Maker] = {}

    def race(key: str, inputs: Layered, script: str, count: int, *needs: str) -> None:
        times = str(max(1, round(count * min(scale, 1))))
        for each, name, path in ((key, "vhdkit", inputs.paths[-1]), (f"{key}-raw", "the raw file", inputs.raw)):
            step = Step((sys.executable, "-c", _OPEN + script, path, times), inputs.folder)
            found[each] = partial(_needing, inputs, needs, name, step)

    def listed(key: str, inputs: Layered, *needs: str) -> None:
        for each, name, path in ((key, "ten layers", inputs.paths[-1]), (f"{key}-raw", "the raw file", inputs.raw)):
            step = Step((sys.executable, "-m", "vhdkit", "ls", f"{path}:/"), inputs.folder)
            found[each] = partial(_needing, inputs, needs, name, step)

    race("small", one, _SMALL_READS, _SMALL)
    race("sequential", ten, _SEQUENTIAL, _PASSES)
    race("extfs", ext4, _EXTFS, _LISTINGS, "mkfs.ext4", "dissect.extfs")
    race("tsk", ntfs, _TSK, _TSK_LISTINGS, "mkntfs", "ntfscp", "pytsk3")
    listed("ls-ntfs", ntfs, "mkntfs", "ntfscp", "pytsk3")
    listed("ls-ext4", ext4_ten, "mkfs.ext4", "pytsk3")
    return found
