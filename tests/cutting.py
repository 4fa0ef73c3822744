"""Merges that are cut off where a test wants it, and journals as whoever means ill would have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vhdkit
from tests.side_files import taken_apart
from tests.unit.test_merge_laws import CHANGES, Event, SpyFolder
from vhdkit.journal import records

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from vhdkit.storage.memory import MemoryFolder
    from vhdkit.storage.protocols import Folder

JOURNAL = ".vhdkit-journal"


class CutError(Exception):
    """The power is gone; nothing that cleans up may run after it."""


class CuttingFolder(SpyFolder):
    """A folder that refuses every change from the first of which `when` is true."""

    def __init__(self, inner: Folder, when: Callable[[Event], bool]) -> None:
        self.is_cut = False
        self.when = when
        super().__init__(inner, self.look)

    def look(self, event: Event) -> None:
        if event.operation not in CHANGES:
            return
        self.is_cut = self.is_cut or self.when(event)
        if self.is_cut:
            raise CutError(event)


def small_checkpoints(monkeypatch: pytest.MonkeyPatch, size: int = 512) -> None:
    """Let windows be of 4 KiB, and a checkpoint, and with it a mark, come after so many bytes."""
    monkeypatch.setattr("vhdkit.chain.resolve_layers._WINDOW_BYTES", 4096)
    for name in ("_FEW_BYTES", "_MANY_BYTES"):
        monkeypatch.setattr(f"vhdkit.merging.run.sector_copier.{name}", size)


def cut_off(folder: Folder, top: str, into: str, when: Callable[[Event], bool], **options: Any) -> vhdkit.MergePlan:
    """Begin a merge, and cut it off before the first change of which `when` is true; return its plan."""
    plan = vhdkit.plan_merge(top, into=into, folder=folder, **options)
    cutting = CuttingFolder(folder, when)
    try:
        vhdkit.merge(plan, folder=cutting)
    except CutError:
        return plan
    raise AssertionError("it was not cut off")


def at_first(operation: str, ending: str) -> Callable[[Event], bool]:
    """Whether an event is such an operation on a path that ends so."""
    return lambda event: event.operation == operation and event.path.endswith(ending)


def after_marks(count: int) -> Callable[[Event], bool]:
    """Whether an event follows so many marks: the begin and reserved records come before them."""
    written = 0

    def when(event: Event) -> bool:
        nonlocal written
        written += event.operation == "sync" and event.path.endswith(JOURNAL)
        return written > count + 2

    return when


def rewrite(folder: MemoryFolder, path: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the records of a file, the checksums right again."""
    found, _, _ = taken_apart(bytes(folder[path].content))
    change(found)
    folder[path].content[:] = records.encode(found)
