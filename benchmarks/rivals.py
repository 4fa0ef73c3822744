"""Who races: vhdkit, `cp`, `qemu-img commit`, Xen Orchestra's vhd-lib, FATtools.

A contender has its inputs, the commands that count, and a judge of the bytes. Tools that are no part of a system are
installed into a folder of the race by their own installers; what cannot be installed is skipped, with the reason.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.images import Inputs, Payload, Qcow2Chain, VhdChain, check_raw, check_vhd
from benchmarks.measuring import ROOT, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workloads import Workload

VHD_LIB = "0.7.2"
VHD_LIB_NEWEST = "4.15.0"
# What the newest asks for and the registry does not have, as packages with one file each. None of it does anything in
# a merge but to name files: the rest is for streams, for tests, and for files elsewhere than on this machine.
_MISSING = {
    "@vates/diff": ("index.js", "module.exports = () => undefined"),
    "@vates/stream-reader": ("index.js", "module.exports = class {}"),
    "@xen-orchestra/fs": (
        "path.js",
        """const path = require('path').posix
module.exports = { ...path, relativeFromFile: (file, to) => path.relative(path.dirname(file), to) }""",
    ),
}
FATTOOLS = "1.1.23"
MERGE = ("merge", "--progress", "none", "--json")
VHDKIT = (sys.executable, "-m", "vhdkit")
# Nothing is shared, which copying in the kernel may do as well: what is written direct is the fastest then.
_COPYING = """
from vhdkit.storage import file_copy, local_file
from vhdkit.__main__ import entry
file_copy.LongCopies._share = lambda *_: False
local_file.copy_in_kernel = lambda *_: 0
entry()
"""
# It takes the Windows path in the child for a name of this system, so the parent gets that name as well.
_FATTOOLS_MERGE = """
import os, sys
home, parent, child = sys.argv[1:]
sys.path.insert(0, home)
from FATtools.vhdutils import Image
if not os.path.lexists('.\\\\base.vhd'):
    os.symlink(parent, '.\\\\base.vhd')
Image(child, 'r+b').merge()
os.fsync(os.open(parent, os.O_RDWR))
"""
UNSHARED = (sys.executable, "-c", _COPYING)


class UnavailableError(RuntimeError):
    """A rival cannot be had here."""


@dataclass(frozen=True)
class Contender:
    """One side of a race. `steps` are what is timed; `check` raises WrongBytesError."""

    name: str
    inputs: Inputs
    steps: tuple[Step, ...]
    check: Callable[[], None] = field(repr=False)
    # A tool that is known to write wrong bytes may have written anywhere: all of its inputs are made again.
    trusted: bool = True


def vhdkit_merge(
    chain: VhdChain, *, keep: bool = False, program: tuple[str, ...] = VHDKIT, name: str = ""
) -> Contender:
    """All levels of a chain folded into its base, as users run it; `keep` leaves the sources."""
    into = ("--into", chain.paths[0]) if len(chain.paths) > 2 else ()
    kept = ("--keep-sources",) if keep else ()
    step = Step((*program, *MERGE, chain.paths[-1], *into, *kept), chain.folder)
    label = name or ("vhdkit --keep-sources" if keep else "vhdkit")
    return Contender(label, chain, (step,), lambda: check_vhd(chain.workload, chain.paths[0]))


def vhdkit_pairs(chain: VhdChain) -> Contender:
    """Level after level into the base, from the lowest on, so that each byte is copied once here too."""
    steps = tuple(Step((*VHDKIT, *MERGE, path), chain.folder) for path in chain.paths[1:])
    return Contender(f"{len(steps)} merges by vhdkit", chain, steps, lambda: check_vhd(chain.workload, chain.paths[0]))


def copy(work: Workload, folder: str) -> Contender:
    """`cp` of the payload alone to a new file, and `sync` of that file."""
    payload = Payload(work, folder)
    script = 'cp --reflink=never "$1" "$1.copy" && sync "$1.copy"'
    step = Step(("sh", "-c", script, "sh", payload.paths[0]), folder)

    def check() -> None:
        assert filecmp.cmp(payload.paths[0], payload.paths[0] + ".copy", shallow=False)

    return Contender("cp, sync", payload, (step,), check)


def qemu_commit(work: Workload, folder: str, *, exact: bool = True) -> Contender:
    """`qemu-img commit` of overlays into a raw base, by its defaults; it syncs the base when it closes it.

    The overlays hold just the workload's sectors if they are `exact`, else whole clusters of 64 KiB.

    A chain is committed from the lowest overlay on, the next one told that it now stands on the base: that copies each
    byte once, where a commit of each overlay into the one below copies most of them many times.
    """
    if shutil.which("qemu-img") is None:
        raise UnavailableError("qemu-img is not installed")
    chain = Qcow2Chain(work, folder, exact=exact)
    steps = []
    for number, path in enumerate(chain.paths[1:]):
        if number:
            steps.append(Step(("qemu-img", "rebase", "-u", "-F", "raw", "-b", chain.paths[0], path), folder))
        steps.append(Step(("qemu-img", "commit", "-q", path), folder))
    name = "qemu-img commit" if len(chain.paths) == 2 else f"{len(chain.paths) - 1} qemu-img commit"
    name += "" if exact else ", 64 KiB clusters"
    return Contender(name, chain, tuple(steps), lambda: check_raw(work, chain.paths[0]))


def vhd_lib(work: Workload, folder: str, tools: str, version: str = VHD_LIB) -> Contender:
    """Xen Orchestra's merge, and a sync, which it leaves to its caller."""
    home = os.path.join(tools, f"vhd-lib-{version}")
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise UnavailableError("npm is not installed")
    if not os.path.isdir(os.path.join(home, "node_modules", "vhd-lib")):
        _describe(home, version)
        _install(["npm", "install", "--prefix", home, "--no-audit", "--no-fund"])
    chain = VhdChain(work, folder)
    driver = str(ROOT / "benchmarks" / "vhd_lib_merge.cjs")
    step = Step(("env", f"VHD_LIB={home}", "node", driver, *chain.paths[:2]), folder, limit=600)
    result = chain.paths[0] if version == VHD_LIB else chain.paths[1]
    return Contender(f"vhd-lib {version}", chain, (step,), lambda: check_vhd(work, result), trusted=False)


def _describe(home: str, version: str) -> None:
    """Write what npm is to install: the library, and for the newest what stands in for packages that are not there."""
    missing = {} if version == VHD_LIB else _MISSING
    for name, (file, text) in missing.items():
        package = os.path.join(home, name)
        os.makedirs(package, exist_ok=True)
        with open(os.path.join(package, file), "w") as script:
            script.write(text)
        with open(os.path.join(package, "package.json"), "w") as description:
            json.dump({"name": name, "version": "99.0.0", "main": file}, description)
    os.makedirs(home, exist_ok=True)
    wanted = {name: f"file:./{name}" for name in missing}
    with open(os.path.join(home, "package.json"), "w") as description:
        json.dump(
            {
                "private": True,
                "dependencies": {"vhd-lib": version} | wanted,
                "overrides": {name: f"${name}" for name in missing},
            },
            description,
        )


def fattools(work: Workload, folder: str, tools: str) -> Contender:
    """The merge of another Python library, and a sync, which it leaves out."""
    home = os.path.join(tools, "fattools")
    if not os.path.isdir(os.path.join(home, "FATtools")):
        _install([sys.executable, "-m", "pip", "install", "-q", "--target", home, f"FATtools=={FATTOOLS}"])
    chain = VhdChain(work, folder)
    step = Step((sys.executable, "-c", _FATTOOLS_MERGE, home, *chain.paths[:2]), folder, limit=600)
    return Contender(f"FATtools {FATTOOLS}", chain, (step,), lambda: check_vhd(work, chain.paths[0]), trusted=False)


def _install(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise UnavailableError(f"{' '.join(command[:2])}: {' '.join(last)[:120]}") from error
