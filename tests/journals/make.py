"""Make the merges that an earlier version has cut off, each a folder of images, journal and step file, in one archive.

Run with that version's code, whose journals are wanted:

    PYTHONPATH=OLD_CHECKOUT python tests/journals/make.py made-by-dfd6f62.tar.xz

The archive is made once and kept: the test reads it. Times of change are in times.json, in nanoseconds.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import vhdkit
from tests.cutting import JOURNAL, CutError, CuttingFolder, at_first
from tests.model import Kind, Snapshot, write_files
from tests.unit.test_merge_laws import chain_over, put
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model import ModelChain
    from tests.unit.test_merge_laws import Event
    from vhdkit.storage.protocols import Folder

    When = Callable[[Event], bool]


def after_records(count: int) -> When:
    """Whether an event follows so many records of the journal."""
    written = 0

    def when(event: Event) -> bool:
        nonlocal written
        written += event.operation == "sync" and event.path.endswith(JOURNAL)
        return written > count or (written == count and event.operation not in {"sync", "sync folder"})

    return when


def two() -> ModelChain:
    return chain_over(Kind.DYNAMIC, put(0, 24, 1), Snapshot(), put(3, 9, 2), put(16, 20, 3))


def growing() -> ModelChain:
    return chain_over(Kind.DYNAMIC, put(0, 40, 1), Snapshot(sector_count=20_000), put(100, 9, 2))


def three() -> ModelChain:
    return chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 20, 2), Snapshot(), put(12, 2, 3))


# What is merged, from which layer, and when it is cut off; with `undo` an undo image is kept.
CUTS: dict[str, tuple[Callable[[], ModelChain], int, When, bool]] = {
    "begin": (two, 1, after_records(1), False),
    "begin with undo": (two, 1, at_first("create", ".partial"), True),
    "reserved": (two, 1, after_records(2), False),
    "growing": (growing, 1, at_first("remove", ".vhdkit-header"), False),
    "grown": (growing, 1, after_records(3), False),
    "saved": (two, 1, after_records(3), True),
    "mark": (two, 1, after_records(4), False),
    "mark with undo": (two, 1, after_records(6), True),
    "merged": (three, 1, at_first("create", ".vhdkit-header"), False),
    "relinking": (three, 1, at_first("remove", ".vhdkit-header"), False),
    "removing": (three, 2, at_first("remove", "layer-1.avhd"), False),
}


def cut(call: Callable[[CuttingFolder], object], when: When, folder: Folder | None = None) -> None:
    """Do something in a folder that is cut off."""
    try:
        call(CuttingFolder(folder or LocalFolder(), when))
    except CutError:
        return
    raise AssertionError("it was not cut off")


def made(place: Path, chain: ModelChain) -> list[str]:
    """Write a chain, its files of whole seconds; return their names, leaf first."""
    place.mkdir()
    paths = write_files(chain, place)
    for path in paths:
        os.utime(path, (1.7e9, 1.7e9))
    return [str(path) for path in paths]


def merged_with_undo(place: Path) -> str:
    paths = made(place, two())
    vhdkit.merge(vhdkit.plan_merge(paths[0], undo=str(place / "undo.vhd")))
    return str(place / "undo.vhd")


def stop(place: Path) -> None:
    """Cancel a merge after some of it."""
    paths = made(place, two())

    def listen(state: Any) -> None:
        if state.bytes_done:
            raise vhdkit.MergeCancelled("stopped as asked")

    try:
        vhdkit.merge(vhdkit.plan_merge(paths[0]), progress=listen)
    except vhdkit.MergeCancelled:
        return
    raise AssertionError("it was not stopped")


def make(place: Path) -> None:
    """Make all cases below a directory."""
    for name, (chain, top, when, keeps) in CUTS.items():
        paths = made(place / name, chain())
        options: dict[str, Any] = {"undo": str(place / name / "undo.vhd")} if keeps else {}
        first = paths[-1 - top] if top < len(paths) else paths[0]
        plan = vhdkit.plan_merge(first, into=paths[-1], **options)
        cut(lambda folder, plan=plan: vhdkit.merge(plan, folder=folder), when)  # type: ignore[misc]
    merged_with_undo(place / "kept")
    undo = merged_with_undo(place / "dropping")
    cut(lambda folder: vhdkit.drop_undo(undo, folder=folder), at_first("remove", ".avhd"))
    for name, when in (("rollback", after_records(2)), ("restored", at_first("remove", "undo.vhd"))):
        undo = merged_with_undo(place / name)
        cut(lambda folder, undo=undo: vhdkit.rollback(undo, folder=folder), when)  # type: ignore[misc]
    stop(place / "stopped")
    named = place / "no UTF-8"
    paths = made(named, two())
    odd = os.path.join(os.fsencode(named), b"l\xff\xe4.avhd")
    os.rename(paths[0], odd)
    plan = vhdkit.plan_merge(os.fsdecode(odd))
    cut(lambda folder: vhdkit.merge(plan, folder=folder), after_records(2))


def main(archive: str) -> None:
    """Make the archive."""
    small = [mock.patch("vhdkit.chain.chain._WINDOW_BYTES", 4096)]
    small += [mock.patch(f"vhdkit.merging.run.sector_copier.{name}", 512) for name in ("_FEW_BYTES", "_MANY_BYTES")]
    for patch in small:
        patch.start()
    with tempfile.TemporaryDirectory() as work:
        place = Path(work) / "cases"
        place.mkdir()
        make(place)
        times = {}
        with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(file for file in place.rglob("*") if file.is_file()):
                name = str(path.relative_to(place))
                times[name] = os.stat(path).st_mtime_ns
                tar.add(path, name)
            record = Path(work) / "times.json"
            record.write_text(json.dumps(times))
            tar.add(record, "times.json")


if __name__ == "__main__":
    main(sys.argv[1])
