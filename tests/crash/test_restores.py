"""Files put back between two runs, at every cut, and every verb after that; CI takes a seeded portion.

All of it: pytest -m slow -s tests/crash/test_restores.py
"""

from __future__ import annotations

import time

import pytest

from tests.crash.programs import PROGRAMS
from tests.crash.restores import merge_moments, singles
from tests.crash.restoring import How, Tally, walk

BY_NAME = {program.name: program for program in PROGRAMS}
# A plain merge; a verified one; a table that grows; a differencing destination; a sibling that is relinked to the undo
# image, and a child that is relinked to the destination; three levels; a child relinked.
NAMES = (
    "seams dynamic 4096",
    "verified differencing",
    "undo of growth by one sector",
    "undo differencing",
    "undo with siblings dynamic",
    "3 levels dynamic",
    "relinked differencing from 1 to 3",
)


def test_what_is_put_back_is_every_file_in_every_way() -> None:
    moments = merge_moments(BY_NAME["undo with siblings dynamic"])
    labels = {restore.label for moment in moments for restore in singles(moment)}
    names = ["layer-0.vhd", "layer-1.avhd", "layer-2.avhd", "branch-0.avhd", "undo.avhd"]
    names += ["layer-0.vhd.vhdkit-journal", "branch-0.avhd.vhdkit-header"]
    for name in names:
        assert {f"{name} gone", f"{name} renamed"} <= labels
        for way in ("over it, old time", "over it, new time", "a new file, old time", "a new file, new time"):
            assert any(label.startswith(f"{name} ") and label.endswith(f"({way})") for label in labels), (name, way)
    assert sum(label.startswith("layer-0.vhd.vhdkit-journal at") for label in labels) >= 20


@pytest.mark.xfail(strict=True, reason="what earlier runs noted is believed without a look at the files")
def test_whatever_is_put_back_every_verb_refuses_or_is_right() -> None:
    tally = Tally()
    for name in NAMES:
        tally.add(walk(BY_NAME[name], How(seed=11, moments=3, restores=5, pairs=3)))
    assert tally.findings == []


@pytest.mark.slow
def test_every_restore_at_every_cut_keeps_the_laws() -> None:
    total, begun = Tally(), time.process_time()
    for name in NAMES:
        tally = walk(BY_NAME[name], How(seed=1, restores=40, pairs=20, writes=False))
        print(f"\n{name}: {tally}", flush=True)  # noqa: T201 - the figures are what the run is for
        total.add(tally)
    print(f"\nin all: {total} ({time.process_time() - begun:.0f} s)\n{total.kinds()}")  # noqa: T201
    assert total.findings == []
