"""Who reads a dynamic VHDX in turn: vhdkit, qemu-img and dissect.hypervisor; and how long a chain of 64 layers takes.

qemu-img makes the VHDX of the raw disk; the chain is of the tests' own writer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.images import check_raw
from benchmarks.measuring import Step
from benchmarks.rivals import VHDKIT, Contender, UnavailableError
from benchmarks.whole_disks import Raw
from benchmarks.workloads import half_full
from tests import plainvhdx
from tests.plainvhdx import FULL, Disk, linked

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workloads import Workload

    Maker = Callable[[], Contender]

LAYERS = 64
_READS = 100_000
_READ_SCRIPT = """
import random, sys
who, path, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if who == "vhdkit":
    import vhdkit
    read = vhdkit.open_chain(path).read
else:
    from dissect.hypervisor.disk.vhdx import VHDX
    disk = VHDX(open(path, "rb"))
    def read(offset, length):
        disk.seek(offset)
        return disk.read(length)
draw = random.Random(1)
total = 0
for _ in range(count):
    total += len(read(draw.randrange(size // 4096) * 4096, 4096))
assert total == count * 4096, total
"""


class Vhdx(Raw):
    """A raw disk, a VHDX of it, and what is made of that."""

    def __init__(self, workload: Workload, folder: str) -> None:
        super().__init__(workload, folder)
        self.vhdx = os.path.join(folder, "disk.vhdx")

    def restore(self, *, thorough: bool = False) -> None:
        """Write what is missing, and remove what was made."""
        super().restore(thorough=thorough)
        if shutil.which("qemu-img") is None:
            raise UnavailableError("qemu-img is not installed")
        if not os.path.exists(self.vhdx):
            options = ("-f", "raw", "-O", "vhdx", "-o", "block_size=2M")
            subprocess.run(("qemu-img", "convert", *options, self.raw, self.vhdx), check=True)


class Layers(Vhdx):
    """A chain of AVHDX files, leaf last."""

    def __init__(self, workload: Workload, folder: str) -> None:
        super().__init__(workload, folder)
        self.paths = [os.path.join(folder, f"layer-{number}.avhdx") for number in range(LAYERS)]

    def restore(self, *, thorough: bool = False) -> None:
        """Write what is missing."""
        del thorough
        for number, path in enumerate(self.paths):
            if not os.path.exists(path):
                with open(path, "wb") as file:
                    file.write(plainvhdx.write(_layer(number)))


def _layer(number: int) -> Disk:
    def data_id(of: int) -> bytes:
        return b"layer-of-64-" + of.to_bytes(4, "big")

    texts = linked(data_id(number - 1), relative=f".\\layer-{number - 1}.avhdx") if number else None
    blocks: dict[int, tuple[int, dict[int, bytes] | bytes]] = {number: (FULL, bytes([number + 1]) * 512)}
    return Disk(size=LAYERS << 20, data_id=data_id(number), texts=texts, blocks=blocks)


def _convert(source: Vhdx) -> Contender:
    step = Step(
        (*VHDKIT, "convert", "-O", "raw", source.vhdx, f"{source.made}.raw", "--progress", "none"), source.folder
    )
    return Contender("vhdkit convert", source, (step,), lambda: check_raw(source.workload, f"{source.made}.raw"))


def _qemu(source: Vhdx) -> Contender:
    script = 'qemu-img convert -f vhdx -O raw "$1" "$2" && sync "$2"'
    step = Step(("sh", "-c", script, "sh", source.vhdx, f"{source.made}.raw"), source.folder)
    return Contender(
        "qemu-img convert, sync", source, (step,), lambda: check_raw(source.workload, f"{source.made}.raw")
    )


def _reads(source: Vhdx, who: str, count: int) -> Contender:
    if who == "dissect" and find_spec("dissect.hypervisor") is None:
        raise UnavailableError("dissect.hypervisor is not installed")
    arguments = (who, source.vhdx, str(source.workload.size), str(count))
    step = Step((sys.executable, "-c", _READ_SCRIPT, *arguments), source.folder)
    return Contender("vhdkit" if who == "vhdkit" else "dissect.hypervisor", source, (step,), lambda: None)


def _chain(source: Layers) -> Contender:
    return Contender("vhdkit chain", source, (Step((*VHDKIT, "chain", source.paths[-1]), source.folder),), lambda: None)


def _start(source: Layers) -> Contender:
    return Contender("python -c ''", source, (Step((sys.executable, "-c", ""), source.folder),), lambda: None)


def vhdx_makers(scale: float, at: Callable[[str], str]) -> dict[str, Maker]:
    """Return the makers of the contenders, by key; `at` returns the folder of a name."""
    disk, layers = Vhdx(half_full(scale), at("vhdx")), Layers(half_full(scale), at("vhdx-layers"))
    count = max(100, round(_READS * min(scale, 1)))
    return {
        "convert": partial(_convert, disk),
        "qemu": partial(_qemu, disk),
        "reads": partial(_reads, disk, "vhdkit", count),
        "dissect": partial(_reads, disk, "dissect", count),
        "chain": partial(_chain, layers),
        "start": partial(_start, layers),
    }
