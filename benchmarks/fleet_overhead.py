"""What a fleet costs beside its merges: processor time of the same merges in a row, and by two processes.

    python -m benchmarks.fleet_overhead FOLDER --chains 1000

Each chain has four layers and 768 KiB to merge; FOLDER is made, and removed. Both ways find and plan first.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import time
from pathlib import Path

import vhdkit
from vhdkit import fleet
from vhdkit.fleet.perform import perform

LEVELS, MIB = 3, 1 << 20


def build(folder: Path, chains: int) -> None:
    """Make the chains, a folder each."""
    for number in range(chains):
        below = folder / f"vm{number:04}" / "base.vhd"
        below.parent.mkdir(parents=True)
        vhdkit.create_image(str(below), size=64 * MIB)
        for level in range(LEVELS):
            child = below.parent / f"{level}.avhd"
            vhdkit.create_image(str(child), parent=str(below))
            with vhdkit.open_chain(str(child), writable=True) as chain:
                chain.write(level * 4 * MIB, random.randbytes(MIB // 4))
            below = child


def processor_seconds() -> float:
    """Return the processor time of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(folder: Path, chains: int, *, in_a_row: bool) -> str:
    """Merge all chains in one of the two ways, and return what that took."""
    build(folder, chains)
    used, begun = processor_seconds(), time.monotonic()
    found = fleet.find_chains(fleet.Pattern.of(f"{folder}/**/*.avhd"), fleet.ParentPolicy())
    plan = fleet.plan_fleet([found], fleet.FleetOptions(verb=fleet.FleetVerb.MERGE))
    if in_a_row:
        done = [perform(task).outcome for task in plan.tasks]
    else:
        done = [chain.outcome for chain in fleet.run_plan(plan, parallel=2).chains]
    assert done == [fleet.ChainOutcome.DONE] * chains
    used, seconds = processor_seconds() - used, time.monotonic() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    shutil.rmtree(folder)
    return f"{used:.1f} s of processor time, {seconds:.1f} s, this process {memory} MiB at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chains", type=int, default=1000)
    options = parser.parse_args()
    options.folder.mkdir()
    os.environ["VHDKIT_STATE"] = str(options.folder / "state")
    for name, in_a_row in (("in a row", True), ("by two processes", False)):
        print(f"{options.chains} merges {name}: {measure(options.folder / 'vms', options.chains, in_a_row=in_a_row)}")
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
