"""What a running merge loses to being asked: the same merge in turn with nobody asking, and with processes that ask.

python benchmarks/asking.py [runs] [MiB] [folder] prints a line for each way of asking, in medians and least times.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import ROOT, Step, run
from vhdkit.chain.chain import open_chain
from vhdkit.vhd.create import create_image

MIB = 1 << 20
# A process that asks five times a second, as `job watch` does, and one that is the command itself once a second.
_LIBRARY = "import time, vhdkit\nwhile True:\n    vhdkit.jobs(running=True)\n    time.sleep(0.2)"
_COMMAND = (
    "import subprocess, sys, time\nwhile True:\n"
    "    subprocess.run([sys.executable, '-m', 'vhdkit', 'job', 'list'], capture_output=True)\n    time.sleep(1)"
)
WAYS = {"nobody": "", "five times a second": _LIBRARY, "`job list` every second": _COMMAND}


def prepare(folder: Path, mib: int) -> None:
    """Make a parent that is half full, and a child with so many MiB of full blocks."""
    rubbish = os.urandom(4 * MIB)
    create_image(str(folder / "base.vhd"), size=2 * mib * MIB)
    for path, blocks in (("base.vhd", range(0, mib, 8)), ("child.avhd", range(0, mib, 4))):
        if path == "child.avhd":
            create_image(str(folder / path), parent=str(folder / "base.vhd"))
        with open_chain(str(folder / path), writable=True) as chain:
            for at in blocks:
                chain.write(2 * at * MIB, rubbish)
            chain.sync()


def restore(pristine: Path, work: Path) -> None:
    """Put the files back in place, synced; what was read for that is in memory."""
    for name in ("base.vhd", "child.avhd"):
        subprocess.run(["cp", "--no-preserve=all", str(pristine / name), str(work / name)], check=True)
        with (work / name).open("r+b") as file:
            os.fsync(file.fileno())


def main() -> None:
    """Measure, and print."""
    given = sys.argv[1:]
    runs, mib, folder = [*given, *["7", "1024", str(ROOT.parent)][len(given) :]]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        pristine, work = Path(made, "pristine"), Path(made, "work")
        pristine.mkdir()
        work.mkdir()
        prepare(pristine, int(mib))
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        step = Step([sys.executable, "-m", "vhdkit", "merge", "child.avhd", "--keep-sources"], str(work))
        environment = os.environ | {"VHDKIT_STATE": os.path.join(tempfile.gettempdir(), "vhdkit-race-state")}
        for _ in range(int(runs)):
            for way, code in WAYS.items():
                restore(pristine, work)
                asker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) if code else None
                try:
                    taken[way].append(run([step]).seconds)
                finally:
                    if asker is not None:
                        asker.kill()
                        asker.wait()
    usual = statistics.median(taken["nobody"])
    for way, seconds in taken.items():
        median, least = statistics.median(seconds), min(seconds)
        ratio, least_ratio = median / usual, least / min(taken["nobody"])
        print(f"{way}: median {median:.3f} s ({ratio:.3f}), least {least:.3f} s ({least_ratio:.3f})")


if __name__ == "__main__":
    main()
