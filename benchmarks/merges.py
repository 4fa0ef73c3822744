"""Measure merges as whole processes: `python benchmarks/merges.py FOLDER` on a file system with 20 GiB free.

Each workload is run in turn with its rival (A B A B ...), inputs made afresh, synced and read before every run. What is
told is the ratio of the medians, since an absolute time on a shared machine means nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import vhdkit

BLOCK = 2 << 20
RUNS = 5
MERGE = [sys.executable, "-m", "vhdkit", "merge", "--progress", "none", "--json"]


def make(folder: Path, *, size: int, base: list[int], child: list[int], part: int) -> Path:
    """Make a parent with the `base` blocks and a child with `part` bytes in each of the `child` blocks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = np.random.default_rng(7).integers(0, 256, BLOCK, np.uint8).tobytes()
    vhdkit.create_image(str(folder / "base.vhd"), size=size)
    with vhdkit.open_chain(str(folder / "base.vhd"), writable=True) as chain:
        for block in base:
            chain.write(block * BLOCK, content)
    vhdkit.create_image(str(folder / "child.avhd"), parent=str(folder / "base.vhd"))
    with vhdkit.open_chain(str(folder / "child.avhd"), writable=True) as chain:
        for block in child:
            chain.write(block * BLOCK, content[::-1][:part])
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(8 << 20):
                pass
    return folder / "child.avhd"


def timed(command: list[str]) -> tuple[float, int]:
    """Return seconds and peak resident KiB of a whole process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - begun, usage.ru_maxrss


def race(folder: Path, workload: dict[str, object], rival: dict[str, object] | None) -> dict[str, float]:
    """Run a merge and its rival in turn: `cp` and `sync` of the payload, or another workload's merge."""
    ours, theirs, peak = [], [], 0
    for _ in range(RUNS):
        child = make(folder / "a", **workload)  # type: ignore[arg-type]
        seconds, rss = timed([*MERGE, str(child)])
        ours.append(seconds)
        peak = max(peak, rss)
        if rival is None:
            child = make(folder / "b", **workload)  # type: ignore[arg-type]
            copy = folder / "b" / "copy"
            theirs.append(timed(["sh", "-c", f"cp --reflink=never '{child}' '{copy}' && sync '{copy}'"])[0])
        else:
            child = make(folder / "b", **rival)  # type: ignore[arg-type]
            theirs.append(timed([*MERGE, str(child)])[0])
    mine, other = statistics.median(ours), statistics.median(theirs)
    return {"seconds": mine, "rival": other, "ratio": mine / other, "peak-mib": peak / 1024}


def main() -> None:
    folder = Path(sys.argv[1]) / "vhdkit-merges"
    folder.mkdir(exist_ok=True)
    scale = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    dense = {"size": 8 << 30, "base": list(range(512 // scale)), "part": BLOCK}
    dense["child"] = list(range(256 // scale, 768 // scale))
    count = 3000 // scale
    spread = np.linspace(0, (2040 << 30) // BLOCK - 1, count).astype(int).tolist()
    near = np.linspace(0, (8 << 30) // BLOCK - 1, count).astype(int).tolist()
    huge = {"size": 2040 << 30, "base": [], "child": spread, "part": 4096}
    small = {"size": 8 << 30, "base": [], "child": sorted(set(near)), "part": 4096}
    results = {
        f"{1024 // scale} MiB of full blocks, half on blocks the parent has / cp and sync of the child": race(
            folder, dense, None
        ),
        f"2040 GiB disk, {count} blocks of 4 KiB / 8 GiB disk, as many": race(folder, huge, small),
    }
    shutil.rmtree(folder)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
