"""Files put back between two runs, at every cut, and every verb after that; CI takes a seeded portion.

All of it: pytest -m slow -s tests/crash/test_restores.py
"""

from __future__ import annotations

import time

import pytest

from tests.crash.acts import take_back
from tests.crash.programs import PROGRAMS, UNDO
from tests.crash.restored_laws import Found, is_needless
from tests.crash.restores import later_moments, merge_moments, singles
from tests.crash.restoring import BY_NAME as VERBS
from tests.crash.restoring import How, Tally, tried, walk
from vhdkit.journal.merge_journal import journal_path
from vhdkit.merging import rollback
from vhdkit.merging.plan import earlier_run, placement
from vhdkit.vhd.header_update import SUFFIX as STEP

pytestmark = pytest.mark.thorough

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


def test_whatever_is_put_back_every_verb_refuses_or_is_right() -> None:
    tally = Tally()
    for name in NAMES:
        tally.add(walk(BY_NAME[name], How(seed=11, moments=1, restores=5, pairs=2)))
    assert tally.findings == []


# What the axis has found


@pytest.mark.parametrize(
    ("name", "about", "verb"),
    [
        # A sector that the source no longer holds had been copied to where a block was still to come.
        ("3 levels dynamic", "layer-1.avhd", "same"),
        # A merge that begins again while its undo image is being dropped needs that image.
        ("undo differencing", "layer-1.avhd", "same"),
        # What is refused notes nothing in the journal.
        ("undo differencing", "layer-1.avhd", "drop"),
        # A child that was relinked already was taken for a sibling, and relinked to the undo image.
        ("undo with siblings dynamic", "layer-0.vhd.vhdkit-journal", "same"),
    ],
)
def test_what_the_axis_has_found_stays_mended(name: str, about: str, verb: str) -> None:
    how = How(seed=3, moments=6, restores=10, about=f"/vms/{about}", verbs=frozenset([verb]), writes=False)
    tally = walk(BY_NAME[name], how)
    assert tally.findings == []
    assert tally.right
    assert tally.refused


def test_an_older_undo_image_is_refused_only_if_something_it_lacks_may_be_overwritten() -> None:
    verbs = frozenset(["same", "roll-back"])
    how = How(seed=4, moments=4, restores=5, about=UNDO, verbs=verbs, writes=False)
    tally = walk(BY_NAME["undo differencing"], how)
    assert (tally.findings, tally.needless.total()) == ([], 0)
    assert tally.right
    assert tally.refused


@pytest.mark.parametrize("what", ["gone", "renamed"])
def test_without_its_undo_image_a_merge_goes_on_if_nothing_is_overwritten(what: str) -> None:
    program, answers = BY_NAME["undo differencing"], set()
    for moment in merge_moments(program, writes=False)[::5]:
        for restore in singles(moment):
            if restore.label == f"undo.avhd {what}":
                disk = restore.apply(moment.disk)
                texts, refusal = tried(program, disk, VERBS["same"])
                is_vain = bool(refusal) and is_needless(Found.at_first(program, disk.contents()), "same")
                assert (texts, is_vain) == ([], False), f"{moment.label}: {refusal}"
                answers.add(bool(refusal))
    # One that is gone for good is made anew as long as nothing was overwritten; one with another name is found.
    assert answers == ({True, False} if what == "gone" else {False})


def test_a_roll_back_that_is_all_but_over_ends_only_if_its_destination_is_as_it_left_it() -> None:
    program, journal = BY_NAME["undo differencing"], journal_path("/vms/layer-1.avhd")
    found = later_moments(take_back, program, writes=False)
    ends = [each for each in found if UNDO not in each.disk.files and journal in each.disk.files]
    assert ends
    for moment in ends:
        assert tried(program, moment.disk, VERBS["roll-back"]) == ([], "")
        for restore in singles(moment):
            if restore.paths == (program.destination,) and " at " in restore.label:
                texts, refusal = tried(program, restore.apply(moment.disk), VERBS["roll-back"])
                assert (texts, refusal[:12]) == ([], "JournalError"), restore.label


def test_dropping_that_is_refused_changes_no_header() -> None:
    program, count = BY_NAME["undo with siblings dynamic"], 0
    for moment in merge_moments(program)[::3]:
        if f"/vms/layer-2.avhd{STEP}" not in moment.disk.files:
            continue
        for restore in singles(moment):
            if restore.paths == (program.destination,) and " at " in restore.label:
                count += 1
                assert tried(program, restore.apply(moment.disk), VERBS["drop"])[0] == [], restore.label
    assert count


# Faults that are planted


def test_a_destination_that_was_put_back_and_is_believed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    how = How(seed=1, moments=12, restores=12, about="/vms/layer-0.vhd", verbs=frozenset(["same"]), enough=1)
    assert walk(BY_NAME["seams dynamic 4096"], how).findings == []
    monkeypatch.setattr(placement, "_is_as_journaled", lambda *_: True)
    found = walk(BY_NAME["seams dynamic 4096"], how).findings
    assert any("the destination" in finding for finding in found)


def test_an_older_undo_image_that_is_believed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = frozenset(["same", "roll-back"])
    how = How(seed=1, moments=6, restores=12, about="/vms/undo.avhd", verbs=verbs, writes=False, enough=1)
    assert walk(BY_NAME["undo dynamic"], how).findings == []
    for module in (earlier_run, rollback):
        monkeypatch.setattr(module, "check_not_older", lambda *_: 0)
        monkeypatch.setattr(module, "may_lack_something", lambda *_: False)
    found = walk(BY_NAME["undo dynamic"], how).findings
    assert any("before the merge" in finding or "the undo image reads otherwise" in finding for finding in found)


@pytest.mark.slow
def test_every_restore_at_every_cut_keeps_the_laws() -> None:
    total, begun = Tally(), time.process_time()
    for name in NAMES:
        tally = walk(BY_NAME[name], How(seed=2, moments=12, restores=20, pairs=8))
        print(f"\n{name}: {tally}", flush=True)  # noqa: T201 - the figures are what the run is for
        total.add(tally)
    print(f"\nin all: {total} ({time.process_time() - begun:.0f} s)\n{total.kinds()}")  # noqa: T201
    assert total.findings == []
