"""Who reads, copies, compares and hashes whole disks in turn: vhdkit, qemu-img, 7zz, cp, sha256sum, dissect.hypervisor.

A contender's output is removed before each run. Rivals that leave the last sync to their caller get one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.images import VhdChain, WrongBytesError, check_raw, check_vhd
from benchmarks.measuring import Step
from benchmarks.rivals import VHDKIT, Contender, UnavailableError
from benchmarks.workloads import BLOCK, half_full, patched

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workloads import Workload

    Maker = Callable[[], Contender]

QUIET = ("--progress", "none")
# 4 KiB at random places that are held: so many reads that starting the interpreter is a small part of them.
_READS = 100_000
_READ_SCRIPT = """
import random, sys
who, path, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if who == "vhdkit":
    import vhdkit
    disk = vhdkit.open_chain(path)
    read = disk.read
else:
    from dissect.hypervisor.disk.vhd import VHD
    disk = VHD(open(path, "rb"))
    def read(offset, length):
        disk.seek(offset)
        return disk.read(length)
draw = random.Random(1)
blocks = size // (4 << 20)
total = 0
for _ in range(count):
    offset = draw.randrange(blocks) * (4 << 20) + draw.randrange(512) * 4096
    total += len(read(offset, 4096))
assert total == count * 4096, total
"""


class Source(VhdChain):
    """A chain that is only read, and what is made of it, which is removed before each run."""

    def __init__(self, workload: Workload, folder: str) -> None:
        super().__init__(workload, folder)
        self.made = os.path.join(folder, "made")

    def restore(self, *, thorough: bool = False) -> None:
        """Write what is missing, and remove what was made."""
        for suffix in ("", ".raw", ".vhd"):
            Path(self.made + suffix).unlink(missing_ok=True)
        if not all(map(os.path.exists, self.paths)):
            super().restore(thorough=thorough)


class Raw(Source):
    """The same, with the raw disk that the leaf shows beside it."""

    def __init__(self, workload: Workload, folder: str) -> None:
        super().__init__(workload, folder)
        self.raw = os.path.join(folder, "view.raw")

    def restore(self, *, thorough: bool = False) -> None:
        """Write what is missing, and remove what was made."""
        super().restore(thorough=thorough)
        if os.path.exists(self.raw):
            return
        with open(self.raw, "wb") as file:
            file.truncate(self.workload.size)
            for block in self.workload.blocks():
                file.seek(block * BLOCK)
                file.write(self.workload.view(block).tobytes())
            os.fsync(file.fileno())

    @property
    def digest(self) -> str:
        """The SHA-256 of the raw disk."""
        total = sha256()
        with open(self.raw, "rb") as file:
            while data := file.read(8 << 20):
                total.update(data)
        return total.hexdigest()


def _needs(program: str) -> None:
    if shutil.which(program) is None:
        raise UnavailableError(f"{program} is not installed")


def _shell(script: str, inputs: Source, *arguments: str) -> Step:
    return Step(("sh", "-c", script, "sh", *arguments), inputs.folder)


def _convert(source: Source) -> Contender:
    step = Step((*VHDKIT, "convert", "-O", "raw", source.paths[-1], f"{source.made}.raw", *QUIET), source.folder)
    return Contender("vhdkit convert", source, (step,), lambda: check_raw(source.workload, f"{source.made}.raw"))


def _qemu_convert(source: Source) -> Contender:
    _needs("qemu-img")
    step = _shell(
        'qemu-img convert -f vpc -O raw "$1" "$2" && sync "$2"', source, source.paths[-1], f"{source.made}.raw"
    )
    name = "qemu-img convert, sync"
    return Contender(name, source, (step,), lambda: check_raw(source.workload, f"{source.made}.raw"), trusted=False)


def _extract(source: Source) -> Contender:
    """7zz reads differencing disks through their parents: its bytes are those of the chain."""
    _needs("7zz")
    step = _shell('7zz e -so "$1" > "$2" && sync "$2"', source, source.paths[-1], f"{source.made}.raw")
    return Contender("7zz e -so, sync", source, (step,), lambda: check_raw(source.workload, f"{source.made}.raw"))


def _merge_to(source: Source) -> Contender:
    step = Step((*VHDKIT, "merge", source.paths[-1], "--to", f"{source.made}.vhd", *QUIET), source.folder)
    return Contender("vhdkit merge --to", source, (step,), lambda: check_vhd(source.workload, f"{source.made}.vhd"))


def _copy_base(source: Source) -> Contender:
    step = _shell('cp --reflink=never "$1" "$2" && sync "$2"', source, source.paths[0], f"{source.made}.vhd")
    return Contender("cp of the base, sync", source, (step,), lambda: None)


def _compare(source: Raw) -> Contender:
    step = Step((*VHDKIT, "compare", source.paths[-1], source.raw), source.folder)
    return Contender("vhdkit compare", source, (step,), lambda: None)


def _qemu_compare(source: Raw) -> Contender:
    _needs("qemu-img")
    step = Step(("qemu-img", "compare", "-q", "-f", "vpc", "-F", "raw", source.paths[-1], source.raw), source.folder)
    return Contender("qemu-img compare", source, (step,), lambda: None)


def _hash(source: Raw) -> Contender:
    command = (*VHDKIT, "hash", source.paths[-1], *QUIET)

    def check() -> None:
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=source.folder).stdout
        if found.split()[0] != source.digest:
            raise WrongBytesError(f"{found.split()[0]} is not the digest of the raw disk")

    return Contender("vhdkit hash", source, (Step(command, source.folder),), check)


def _sha256sum(source: Raw) -> Contender:
    _needs("sha256sum")
    return Contender("sha256sum", source, (Step(("sha256sum", source.raw), source.folder),), lambda: None)


def _map(source: Source) -> Contender:
    return Contender("vhdkit map", source, (Step((*VHDKIT, "map", source.paths[-1]), source.folder),), lambda: None)


def _imports(source: Source) -> Contender:
    step = Step((sys.executable, "-c", "import numpy, construct"), source.folder)
    return Contender("import numpy, construct", source, (step,), lambda: None)


def _reads(source: Source, who: str, count: int) -> Contender:
    if who == "dissect" and find_spec("dissect.hypervisor") is None:
        raise UnavailableError("dissect.hypervisor is not installed")
    path = source.paths[-1] if who == "vhdkit" else source.paths[0]
    arguments = (who, path, str(source.workload.size), str(count))
    name = "vhdkit" if who == "vhdkit" else "dissect.hypervisor, one layer"
    step = Step((sys.executable, "-c", _READ_SCRIPT, *arguments), source.folder)
    return Contender(name, source, (step,), lambda: None)


def layered(scale: float, count: int) -> Workload:
    """Return the half full disk with layers above it that each hold a few sectors of every block."""
    base = half_full(scale)
    random = np.random.default_rng(8)
    layers = list(base.layers)
    full = layers[0]
    for number in range(1, count):
        held = np.zeros_like(full.held)
        for row in held:
            start = int(random.integers(0, held.shape[1] - 8))
            row[start : start + 8] = True
        layers.append(type(full)(number, full.blocks, held))
    return type(base)(f"{count} layers", base.size, tuple(layers))


def at_depth(count: int, scale: float, at: Callable[[str], str]) -> dict[str, Maker]:
    """Return a reader of a 64 MiB disk through that many layers; its rival reads the base alone."""
    source = Source(layered(scale / 32, count), at("depth"))
    reads = max(100, round(_READS * min(scale, 1)))
    return {"vhdkit": partial(_reads, source, "vhdkit", reads), "dissect": partial(_reads, source, "dissect", reads)}


def at_payload(scale: float, at: Callable[[str], str]) -> tuple[dict[str, int], dict[str, Maker]]:
    """Return what half of a disk of 2 GiB, times `scale`, holds, and who converts it."""
    source = Source(half_full(scale), at("payload"))
    held = source.workload.layers[0].payload
    return {"held": held}, {"vhdkit": partial(_convert, source), "qemu": partial(_qemu_convert, source)}


def makers(name: str, scale: float, at: Callable[[str], str]) -> dict[str, Maker]:
    """Return the makers of the contenders of a group, by key; `at` returns the folder of a name."""
    if name == "reads":
        one, ten = Source(layered(scale, 1), at("one")), Source(layered(scale, 10), at("ten"))
        count = max(100, round(_READS * min(scale, 1)))
        return {
            "one": partial(_reads, one, "vhdkit", count),
            "ten": partial(_reads, ten, "vhdkit", count),
            "dissect": partial(_reads, one, "dissect", count),
        }
    if name == "half":
        half = Raw(half_full(scale), at("half"))
        return {
            "convert": partial(_convert, half),
            "qemu": partial(_qemu_convert, half),
            "compare": partial(_compare, half),
            "qemu-compare": partial(_qemu_compare, half),
            "hash": partial(_hash, half),
            "sha256sum": partial(_sha256sum, half),
        }
    two = Source(patched(scale), at("two"))
    return {
        "convert": partial(_convert, two),
        "7zz": partial(_extract, two),
        "to": partial(_merge_to, two),
        "cp": partial(_copy_base, two),
        "map": partial(_map, two),
        "imports": partial(_imports, two),
    }
