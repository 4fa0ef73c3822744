"""The rows of the race: what runs in turn with what, and the bar that each ratio must not pass."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import vhdkit
from benchmarks import rivals, streams, vhdx_disks, whole_disks
from benchmarks.images import Inputs, VhdChain
from benchmarks.measuring import Step
from benchmarks.rivals import Contender, UnavailableError
from benchmarks.workloads import GIB, WORKLOADS, Workload, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Maker = Callable[[], Contender]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: contender `ours` of a group against `rival`; `bar` is a ratio, `limit` is seconds."""

    group: str
    what: str
    ours: str
    rival: str
    bar: float | None = None
    limit: float | None = None


ROWS = {
    "W1-cp": Row("W1", "W1, 2 GiB of full blocks", "vhdkit", "cp", 0.8),
    "W1-qemu": Row("W1", "W1", "vhdkit", "qemu", 1.0),
    "W1-qemu64k": Row("W1", "W1", "vhdkit", "qemu64k"),
    "W1-vhdlib": Row("W1", "W1", "vhdkit", "vhdlib", 0.6),
    "W1-vhdlib4": Row("W1", "W1", "vhdkit", "vhdlib4", 0.6),
    "W1-fattools": Row("W1", "W1", "vhdkit", "fattools"),
    "W2-qemu": Row("W2", "W2, 1,500 blocks, a tenth of each in runs of 8", "vhdkit", "qemu", 0.6),
    "W2-qemu64k": Row("W2", "W2", "vhdkit", "qemu64k"),
    "W2-vhdlib": Row("W2", "W2", "vhdkit", "vhdlib"),
    "W2-vhdlib4": Row("W2", "W2", "vhdkit", "vhdlib4"),
    "W2-fattools": Row("W2", "W2", "vhdkit", "fattools"),
    "W3-qemu": Row("W3", "W3, 500 blocks, every other sector", "vhdkit", "qemu", 0.15),
    "W3-qemu64k": Row("W3", "W3", "vhdkit", "qemu64k"),
    "W3-vhdlib": Row("W3", "W3", "vhdkit", "vhdlib"),
    "W3-vhdlib4": Row("W3", "W3", "vhdkit", "vhdlib4"),
    "W3-fattools": Row("W3", "W3", "vhdkit", "fattools"),
    "W4-near": Row("W4", "W4, 3,000 blocks over 2040 GiB", "vhdkit", "near", 1.3),
    "W4-qemu": Row("W4", "W4", "vhdkit", "qemu", 0.3),
    "W4-qemu64k": Row("W4", "W4", "vhdkit", "qemu64k"),
    "W4-vhdlib": Row("W4", "W4", "vhdkit", "vhdlib"),
    "W4-vhdlib4": Row("W4", "W4", "vhdkit", "vhdlib4"),
    "W4-fattools": Row("W4", "W4", "vhdkit", "fattools"),
    "W5-pairs": Row("W5", "W5, ten levels in one pass", "vhdkit", "pairs", 0.4),
    "W5-qemu": Row("W5", "W5", "vhdkit", "qemu", 0.5),
    "W5-qemu64k": Row("W5", "W5", "vhdkit", "qemu64k"),
    "W6-xfs": Row("W6-xfs", "W6, extents shared on XFS", "vhdkit", "unshared", 0.2),
    "W6-btrfs": Row("W6-btrfs", "W6, extents shared on Btrfs", "vhdkit", "unshared", 0.2),
    "W1-double": Row("W1-double", "W1, twice the payload", "twice", "once", 2.1),
    "W2-double": Row("W2-double", "W2, twice the payload", "twice", "once", 2.1),
    "reads-one": Row("reads", "100,000 reads of 4 KiB, one dynamic layer", "one", "dissect", 1.2),
    "reads-ten": Row("reads", "the same through ten layers", "ten", "dissect", 1.6),
    "stream-small": Row(
        "streams", "8 reads of 512 bytes in a row, 100,000 times, by a stream", "small", "small-raw", 5.0
    ),
    "stream-sequential": Row(
        "streams", "1 MiB a read, ten layers in runs of 64 KiB", "sequential", "sequential-raw", 1.5
    ),
    "stream-extfs": Row("streams", "300 files listed by dissect.extfs", "extfs", "extfs-raw", 1.5),
    "stream-tsk": Row("streams", "NTFS listed by pytsk3 through ten layers", "tsk", "tsk-raw", 1.5),
    "ls-ntfs": Row("streams", "`ls` of 300 files of NTFS through ten layers", "ls-ntfs", "ls-ntfs-raw", 1.5),
    "ls-ext4": Row("streams", "`ls` of 300 files of ext4 through ten layers", "ls-ext4", "ls-ext4-raw", 1.5),
    "convert-qemu": Row("half", "`convert -O raw`, 2 GiB half full", "convert", "qemu", 0.9),
    "convert-7zz": Row("two", "`convert -O raw`, a chain of two, 300 blocks patched", "convert", "7zz", 0.6),
    "to-cp": Row("two", "`merge --to` of that chain", "to", "cp", 1.0),
    "compare-qemu": Row("half", "`compare` with the raw disk", "compare", "qemu-compare", 0.8),
    "hash-sha256sum": Row("half", "`hash`", "hash", "sha256sum", 0.6),
    "map": Row("two", "`map` of 300 patched blocks", "map", "imports", limit=0.3),
    "vhdx-qemu": Row("vhdx", "`convert -O raw` of a dynamic VHDX, 2 GiB half full", "convert", "qemu", 0.9),
    "vhdx-dissect": Row("vhdx", "100,000 reads of 4 KiB of it", "reads", "dissect", 1.2),
    "vhdx-chain": Row("vhdx", "`chain` of 64 layers of AVHDX", "chain", "start", limit=1.0),
    "help": Row("asking", "`vhdkit --help`", "help", "start", limit=0.1),
    "info": Row("asking", "`info` of 2040 GiB", "info", "start", limit=0.3),
    "chain": Row("asking", "`chain` of 64 layers of 2040 GiB", "chain", "start", limit=1.5),
    "scan": Row("asking", "`scan` of 1,000 images", "scan-1000", "scan-250", 4.4, 5.0),
}
# Points of the plots: a factor of the payload, GiB of virtual size, or layers.
PLOTS: dict[str, tuple[float, ...]] = {
    "W1": (0.25, 0.5, 1, 2),
    "W2": (0.25, 0.5, 1, 2),
    "W4": (8, 64, 512, 2040),
    "depth": (1, 2, 4, 8, 16, 32, 64),
    "convert": (0.25, 0.5, 1, 2),
}


class Place:
    """Where a race's files lie, and where its tools are installed."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(os.path.abspath(folder), "vhdkit-race")
        self.tools = os.path.join(os.path.abspath(folder), "vhdkit-race-tools")
        os.makedirs(self.folder, exist_ok=True)

    def at(self, name: str) -> str:
        """Return the folder of one contender."""
        return os.path.join(self.folder, name)


@contextmanager
def group(name: str, scale: float, place: Place) -> Iterator[dict[str, Maker]]:
    """Lend makers of the contenders of a group, by key; its file systems are mounted meanwhile.

    Raises:
        UnavailableError: a file system cannot be mounted here.

    """
    with ExitStack() as stack:
        if name == "asking":
            yield _asking(scale, place)
        elif name == "streams":
            yield streams.makers(scale, place.at)
        elif name in {"reads", "half", "two"}:
            yield whole_disks.makers(name, scale, place.at)
        elif name == "vhdx":
            yield vhdx_disks.vhdx_makers(scale, place.at)
        elif name.startswith("W6"):
            kind = name.partition("-")[2]
            work = WORKLOADS["W6"](scale)
            home = stack.enter_context(mounted(kind, place.at(kind), work.payload * 5 + (1 << 30)))
            chain = VhdChain(work, os.path.join(home, "chain"))
            yield {
                "vhdkit": lambda: rivals.vhdkit_merge(chain, name=f"vhdkit on {kind}"),
                "unshared": lambda: rivals.vhdkit_merge(
                    chain, name=f"vhdkit on {kind}, nothing shared", program=rivals.UNSHARED
                ),
            }
        elif name.endswith("-double"):
            yield _double(WORKLOADS[name[:2]], scale, place)
        else:
            yield merges(WORKLOADS[name](scale), scale, place)


def merges(work: Workload, scale: float, place: Place) -> dict[str, Maker]:
    """Return the makers of everyone who can merge a workload; ours share their files, as the second figure may."""
    chain = VhdChain(work, place.at("ours"))
    makers: dict[str, Maker] = {
        "vhdkit": lambda: rivals.vhdkit_merge(chain),
        "keep": lambda: rivals.vhdkit_merge(chain, keep=True),
        "cp": lambda: rivals.copy(work, place.at("cp")),
        "qemu": lambda: rivals.qemu_commit(work, place.at("qemu")),
        "qemu64k": lambda: rivals.qemu_commit(work, place.at("qemu64k"), exact=False),
    }
    if work.name == "W4":
        near = VhdChain(spread(scale, 8 * scale, "W4 near"), place.at("near"))
        makers["near"] = lambda: rivals.vhdkit_merge(near, name="vhdkit, 8 GiB disk")
    if len(work.layers) > 2:
        makers["pairs"] = lambda: rivals.vhdkit_pairs(chain)
    else:
        makers["vhdlib"] = lambda: rivals.vhd_lib(work, place.at("vhdlib"), place.tools)
        newest = rivals.VHD_LIB_NEWEST
        makers["vhdlib4"] = lambda: rivals.vhd_lib(work, place.at("vhdlib4"), place.tools, newest)
        makers["fattools"] = lambda: rivals.fattools(work, place.at("fattools"), place.tools)
    return makers


def _double(make: Callable[[float], Workload], scale: float, place: Place) -> dict[str, Maker]:
    once = VhdChain(make(scale), place.at("once"))
    twice = VhdChain(make(2 * scale), place.at("twice"))
    return {
        "once": lambda: rivals.vhdkit_merge(once, name="vhdkit, once the payload"),
        "twice": lambda: rivals.vhdkit_merge(twice, name="vhdkit, twice the payload"),
    }


class _Images(Inputs):
    """Empty images that are made once and only looked at."""

    def __init__(self, folder: str, count: int, size: int, *, linked: bool) -> None:
        self._count, self._size, self._linked = count, size, linked
        super().__init__(Workload("empty", size, ()), folder)

    def _names(self) -> list[str]:
        return [f"image{number:04}.vhd" for number in range(self._count)]

    def restore(self, *, thorough: bool = False) -> None:
        """Make them, if they are not there."""
        del thorough
        for number, path in enumerate(self.paths):
            if not os.path.exists(path):
                parent = self.paths[number - 1] if self._linked and number else None
                vhdkit.create_image(path, size=self._size, parent=parent)


def _asking(scale: float, place: Place) -> dict[str, Maker]:
    """Return the makers of the verbs that answer at once; the least that any Python program takes beside them."""
    huge = int(2040 * min(scale, 1)) * GIB or GIB
    layers = _Images(place.at("layers"), max(4, round(64 * min(scale, 1))), huge, linked=True)
    many = _Images(place.at("many"), max(8, round(1000 * min(scale, 1))), GIB, linked=False)
    few = _Images(place.at("few"), len(many.paths) // 4, GIB, linked=False)

    def asking(name: str, inputs: Inputs, *command: str) -> Maker:
        step = Step((*rivals.VHDKIT, *command), inputs.folder)
        return lambda: Contender(name, inputs, (step,), lambda: None)

    start = Step((sys.executable, "-c", "pass"), layers.folder)
    return {
        "start": lambda: Contender("an empty Python program", layers, (start,), lambda: None),
        "help": asking("--help", layers, "--help"),
        "info": asking("info", layers, "info", layers.paths[0]),
        "chain": asking("chain", layers, "chain", layers.paths[-1]),
        "scan-1000": asking(f"scan of {len(many.paths)}", many, "scan", many.folder),
        "scan-250": asking(f"scan of {len(few.paths)}", few, "scan", few.folder),
    }


@contextmanager
def mounted(kind: str, folder: str, size: int) -> Iterator[str]:
    """Lend a new file system in a file, mounted.

    Raises:
        UnavailableError: it cannot be made or mounted: not root, or its tools are missing.

    """
    os.makedirs(folder, exist_ok=True)
    file, home = os.path.join(folder, "file"), os.path.join(folder, "mounted")
    os.makedirs(home, exist_ok=True)
    make = {"xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}[kind]
    try:
        with open(file, "wb") as new:
            new.truncate(size)
        for command in ([*make, file], ["mount", "-o", "loop", file, home]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (subprocess.CalledProcessError, OSError) as error:
        os.unlink(file)
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise UnavailableError(f"{kind} cannot be mounted: {' '.join(last)}") from error
    try:
        yield home
    finally:
        subprocess.run(["umount", home], check=True, timeout=120)
        os.unlink(file)
