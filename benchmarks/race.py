"""The race: `python benchmarks/race.py FOLDER [--rows W1-cp,W3-qemu] [--runs 5] [--scale 1]`.

FOLDER needs 35 GiB at full size, 50 if all rows of W1 are run together. Every contender of a group runs in turn, whole
processes, each from restored inputs; each one's bytes are judged at its first run. Rows that are run replace those of
the results; the others stay.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks import plot, results, whole_disks
from benchmarks.images import WrongBytesError
from benchmarks.measuring import ROOT, FailedError, Figures, Run, count_syncs, figures, run, touch_memory
from benchmarks.rivals import Contender, UnavailableError
from benchmarks.rows import PLOTS, ROWS, Place, group, merges
from benchmarks.workloads import WORKLOADS, spread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.rows import Maker

# A tool that takes so much longer is run once: more would tell nothing.
_SLOW = 60.0
_MOST_TOUCHED = 8 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """How a race is run; without `timed` every contender runs once and nothing is done for the clock's sake."""

    scale: float = 1.0
    runs: int = 5
    timed: bool = True


@dataclass(slots=True)
class _Entry:
    """A contender while it races."""

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    note: str = ""
    failure: str = ""

    @property
    def done(self) -> bool:
        """Whether it is run no more."""
        return bool(self.failure) or (bool(self.runs) and self.runs[0].seconds > _SLOW)

    def turn(self, settings: Settings, console: Console) -> None:
        """Run it once, and judge its bytes if that was its first time."""
        try:
            _prepare(self.contender, settings)
            self.runs.append(run(self.contender.steps))
        except FailedError as error:
            self.failure = str(error)
            console.print(f"  {self.contender.name}: {self.failure}", markup=False)
            return
        if len(self.runs) == 1:
            self.note = _judged(self.contender)
        console.print(f"  {self.contender.name}: {self.runs[-1].seconds:.2f} s {self.note}", markup=False)

    def figures(self, settings: Settings) -> Figures:
        """Return what it took; its syncs are counted in one run more."""
        syncs = -1
        if settings.timed and not self.done:
            self.contender.inputs.restore(thorough=not self.contender.trusted)
            syncs = count_syncs(self.contender.steps)
        return figures(self.contender.name, self.runs, syncs=syncs, note=self.note)


def race(makers: dict[str, Maker], settings: Settings, console: Console) -> tuple[dict[str, Figures], dict[str, str]]:
    """Run contenders in turn; return their figures, and why those that have none were skipped."""
    skipped: dict[str, str] = {}
    entries: dict[str, _Entry] = {}
    for key, make in makers.items():
        try:
            entries[key] = _Entry(make())
        except UnavailableError as error:
            skipped[key] = str(error)
    for _ in range(settings.runs if settings.timed else 1):
        for entry in entries.values():
            if not entry.done:
                entry.turn(settings, console)
    skipped |= {key: entry.failure for key, entry in entries.items() if entry.failure}
    return {key: entry.figures(settings) for key, entry in entries.items() if not entry.failure}, skipped


def _prepare(contender: Contender, settings: Settings) -> None:
    contender.inputs.restore(thorough=not contender.trusted)
    contender.inputs.read_once()
    if settings.timed:
        touch_memory(min(_MOST_TOUCHED, (1 << 30) + 3 * contender.inputs.workload.payload))


def _judged(contender: Contender) -> str:
    """Return "wrong bytes" for a rival that wrote them; ours must not."""
    try:
        contender.check()
    except WrongBytesError:
        if contender.trusted:
            raise
        return "wrong bytes"
    return ""


def rows_of(names: Iterable[str], settings: Settings, place: Place, console: Console) -> dict[str, Any]:
    """Run the rows of those names, group by group, and return their results."""
    wanted = {name: ROWS[name] for name in names}
    found: dict[str, Any] = {}
    for group_name in dict.fromkeys(row.group for row in wanted.values()):
        rows = {name: row for name, row in wanted.items() if row.group == group_name}
        needed = {key for row in rows.values() for key in (row.ours, row.rival)} | {"keep"}
        console.print(f"{group_name}: {', '.join(rows)}")
        try:
            with group(group_name, settings.scale, place) as makers:
                chosen = {key: make for key, make in makers.items() if key in needed}
                done, skipped = race(chosen, settings, console)
        except UnavailableError as error:
            done, skipped = {}, dict.fromkeys(needed, str(error))
        finally:
            shutil.rmtree(place.folder)
            os.makedirs(place.folder)
        for name, row in rows.items():
            found[name] = results.row(row, done, skipped) | _when(settings)
    return found


def series_of(names: Iterable[str], settings: Settings, place: Place, console: Console) -> dict[str, Any]:
    """Run the points of the plots, each with everyone in turn, and return least and median seconds."""
    found: dict[str, Any] = {}
    for name in names:
        points = []
        for at in PLOTS[name] if settings.timed else PLOTS[name][::3]:
            console.print(f"plot of {name} at {at}")
            where, makers = _point(name, at, settings.scale, place)
            done, _ = race(makers, settings, console)
            seconds = {key: {"median": taken.seconds, "least": taken.least} for key, taken in done.items()}
            points.append(where | {"seconds": seconds})
            shutil.rmtree(place.folder)
            os.makedirs(place.folder)
        found[name] = {"points": points} | _when(settings)
    return found


def _point(name: str, at: float, scale: float, place: Place) -> tuple[dict[str, int], dict[str, Maker]]:
    """Return where a point lies, and who takes part in it."""
    if name == "depth":
        return {"layers": round(at)}, whole_disks.at_depth(round(at), scale, place.at)
    if name == "convert":
        return whole_disks.at_payload(scale * at, place.at)
    work = spread(scale, at * min(scale, 1)) if name == "W4" else WORKLOADS[name](scale * at)
    makers = merges(work, scale, place)
    return {"payload": work.payload, "size": work.size}, {key: makers[key] for key in ("vhdkit", "cp", "qemu")}


def _when(settings: Settings) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "scale": settings.scale,
        "timed": settings.timed,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit or "unknown",
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print the table, and write results.md, results.json and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", help="names, by commas; none for the plots alone; all unless told")
    parser.add_argument("--plots", help="W1, W2, W4, depth, convert, by commas; all unless --rows is given")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--untimed", action="store_true", help="one run each, for the sake of the bytes")
    parser.add_argument("--results", default=str(ROOT / "benchmarks"), help="the folder of the results")
    options = parser.parse_args(arguments)
    for name in filter(None, (options.rows or "").split(",")):
        if name not in ROWS:
            parser.error(f"there is no row {name}; there are {', '.join(ROWS)}")
    settings = Settings(options.scale, options.runs, not options.untimed)
    place, console = Place(options.folder), Console()
    rows = list(ROWS) if options.rows is None else list(filter(None, options.rows.split(",")))
    plots = list(PLOTS) if options.plots is None else list(filter(None, options.plots.split(",")))
    if options.plots is None and options.rows is not None:
        plots = []
    os.makedirs(options.results, exist_ok=True)
    kept = results.load(options.results)
    # One by one, so that what was measured is kept if a later one fails.
    for name in dict.fromkeys(ROWS[row].group for row in rows):
        kept["rows"] |= rows_of([row for row in rows if ROWS[row].group == name], settings, place, console)
        results.save(options.results, kept)
    for name in plots:
        kept["series"] |= series_of([name], settings, place, console)
        results.save(options.results, kept)
    Path(options.results, "race.svg").write_text(plot.drawn(kept["series"]))
    Path(options.results, "disks.svg").write_text(plot.drawn_disks(kept["series"]))
    console.print(results.table(kept["rows"]))


if __name__ == "__main__":
    main()
