"""Chains to merge, what they read, and processes that merge them."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import vhdkit
from tests.cli.running import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.job.job import Job

MIB = 1 << 20


def make_chain(folder: Path, name: str, mebibytes: int, *, seed: int = 0, levels: int = 1) -> str:
    """Make a base and its children, the topmost of which holds so many MiB of full blocks; return that one."""
    noise = random.Random(f"{name} {seed}")
    base = str(folder / f"{name}.vhd")
    vhdkit.create_image(base, size=max(64, 2 * mebibytes) * MIB)
    below = base
    for level in range(levels):
        child = str(folder / f"{name}_{level}.avhd")
        vhdkit.create_image(child, parent=below)
        with vhdkit.open_chain(child, writable=True) as chain:
            chain.write(level * 512, noise.randbytes(512))
            if level == levels - 1:
                for at in range(mebibytes):
                    chain.write((2 * at + 1) * MIB // 2, noise.randbytes(MIB))
        below = child
    return below


def view(path: str) -> str:
    """Return a digest of all that a disk reads."""
    digest = hashlib.sha256()
    with vhdkit.open_chain(path, lock=False) as chain:
        for offset in range(0, chain.size, 8 * MIB):
            digest.update(chain.read(offset, min(8 * MIB, chain.size - offset)))
    return digest.hexdigest()


def lose(state: Path) -> None:
    """Remove a list of jobs, whoever is writing to it meanwhile."""
    while True:
        try:
            shutil.rmtree(state)
        except OSError:
            continue
        return


# No test waits so long unless something hangs, however busy the machine is.
HANGS_SECONDS = 120.0


def until(is_so: Callable[[], object], seconds: float = HANGS_SECONDS) -> None:
    """Wait until something is so."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < seconds, "it never was so"
        time.sleep(0.02)


def the_job() -> Job:
    """Return the only job there is."""
    (job,) = vhdkit.jobs()
    return job


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
