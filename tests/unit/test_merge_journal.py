"""What a journal says, and what it may not bring about: it is believed as far as the files bear it out."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cutting import JOURNAL, after_marks, at_first, cut_off, rewrite, small_checkpoints
from tests.model import Kind, Merge, Snapshot, write_files
from tests.side_files import taken_apart
from tests.typed import as_typed
from tests.unit.test_merge_laws import chain_over, contents, fold, in_memory, plain_view, put, vhdkit_view
from vhdkit.journal import records
from vhdkit.journal.file_state import Seen
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.merge_journal import Journal, JournalFile, UnbegunJournal, find_journal, journal_path, read_journal
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model import ModelChain

    Record = dict[str, Any]
    Change = Callable[[list[Record]], object]

FILE = {"path": "leaf.avhd", "unique_id": "aa" * 16, "header": "bb" * 32, "size": 4096, "mtime": 12.5}
SEEN: dict[str, Any] = {"identity": "10:1f", "size": 4096, "mtime": 12.5, "ctime": 13.5, "now": 14.5}
BEGIN: dict[str, Any] = {
    "kind": "begin",
    "version": 1,
    "job": "9ff0f3f2-5b1c-4b8e-9a55-0d8e6c1f2a3b",
    "started": 1.5,
    "pid": 77,
    "host": "here",
    "sources": [FILE, FILE | {"path": "middle.avhd"}],
    "destination": FILE | {"path": "base.vhd"},
    "below": [],
    "keep_sources": False,
    "relink_siblings": False,
    "undo": "",
    "undo_id": "",
    "view": "",
    "payload_bytes": 1000,
    "first": 4096,
    "stride": 8192,
    "moved": 0,
    "added": 1,
    "file_end": 16384,
    "growth": None,
    "footer": "00" * 512,
    "virtual_size": 8192,
    "plan": "cc" * 32,
}
MERGED: dict[str, Any] = {"kind": "merged", "relinks": [], "destination": [16896, 3.5]}


def said(*found: Record) -> Journal:
    files = {"/vms/leaf.avhd": b"", "/vms/base.vhd": b"", "/vms/base.vhd" + JOURNAL: records.encode(found)}
    journal = read_journal(MemoryFolder(files), "/vms/base.vhd")
    assert journal is not None
    return journal


# What it says


def test_an_empty_journal_is_one_of_a_merge_that_has_not_begun() -> None:
    folder = MemoryFolder({"/vms/base.vhd": b"", "/vms/base.vhd" + JOURNAL: b""})
    journal = find_journal(folder, "/vms/base.vhd")
    assert isinstance(journal, UnbegunJournal)
    assert read_journal(folder, "/vms/base.vhd") is None
    assert "nothing was changed" in journal.say()
    assert journal.destination == "/vms/base.vhd"


def test_every_field_of_the_begin_is_read() -> None:
    begin = said(BEGIN).begin
    assert begin is not None
    for name in set(BEGIN) - {"kind", "sources", "destination", "below"}:
        assert getattr(begin, name) == BEGIN[name], name
    assert [source.path for source in begin.sources] == ["leaf.avhd", "middle.avhd"]
    assert {name: getattr(begin.destination, name) for name in FILE} == FILE | {"path": "base.vhd"}


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ({"kind": "reserved"}, "reserved", True),
        ({"kind": "grown"}, "grown", True),
        ({"kind": "saved", "offset": 512}, "saved", 512),
        ({"kind": "mark", "offset": 1024, "bytes": 300, "mtime": 7.5}, "mark", 1024),
        ({"kind": "mark", "offset": 1024, "bytes": 300, "mtime": 7.5}, "bytes_done", 300),
        (MERGED, "merged", True),
        (MERGED, "destination_after", (16896, 3.5)),
        ({"kind": "saved", "offset": 512, "held": 7, "undo": SEEN}, "held", 7),
        ({"kind": "saved", "offset": 512, "held": 7, "undo": SEEN}, "undo_seen", Seen(**SEEN)),
        (MERGED | {"seen": SEEN}, "destination_seen", Seen(**SEEN)),
        (MERGED | {"undo": SEEN}, "undo_seen", Seen(**SEEN)),
        ({"kind": "verified", "sources": [], "seen": SEEN}, "verified", ()),
        ({"kind": "doubted", "reason": "put back"}, "doubt", "put back"),
        ({"kind": "dropping", "keep_file": True}, "dropping", True),
        ({"kind": "dropping", "keep_file": True}, "keep_undo_file", True),
        ({"kind": "dropping", "keep_file": False}, "keep_undo_file", False),
        ({"kind": "rollback"}, "rolling_back", True),
        ({"kind": "restored"}, "restored", True),
        ({"kind": "stopped", "reason": "cancelled", "destination": [9, 1.5]}, "stopped", "cancelled"),
    ],
)
def test_each_kind_of_record_is_followed(record: Record, field: str, value: object) -> None:
    before = said(BEGIN)
    assert getattr(said(BEGIN, record), field) == value
    if value is not False:
        assert getattr(before, field) != value


def test_a_mark_behind_a_complete_merge_takes_it_back() -> None:
    mark = {"kind": "mark", "offset": 0, "bytes": 0, "mtime": 0.0}
    verified = {"kind": "verified", "sources": [], "seen": SEEN}
    journal = said(BEGIN, MERGED, verified, mark)
    assert not journal.merged
    assert journal.verified is None


def test_names_given_later_are_what_the_files_are_called() -> None:
    undone = BEGIN | {"undo": "undo.vhd", "undo_id": "dd" * 16}
    journal = said(undone, MERGED, {"kind": "names", "sources": ["new.avhd", "middle.avhd"], "undo": "u.vhd"})
    assert journal.merged
    assert ([source.path for source in journal.begin.sources], journal.begin.undo) == (
        ["new.avhd", "middle.avhd"],
        "u.vhd",
    )


def test_going_on_forgets_why_it_was_stopped() -> None:
    assert said(BEGIN, {"kind": "stopped", "reason": "x", "destination": [9, 1.5]}, {"kind": "reserved"}).stopped == ""


def test_a_second_begin_starts_over() -> None:
    mark = {"kind": "mark", "offset": 1024, "bytes": 300, "mtime": 7.5}
    journal = said(BEGIN, {"kind": "reserved"}, {"kind": "grown"}, mark, MERGED, BEGIN)
    assert not journal.reserved
    assert not journal.grown
    assert not journal.merged
    assert (journal.mark, journal.bytes_done) == (0, 0)


def test_what_it_says_in_words_is_what_to_do_next() -> None:
    undone = BEGIN | {"undo": "undo.avhd", "undo_id": "dd" * 16}
    mark = {"kind": "mark", "offset": 1024, "bytes": 420, "mtime": 7.5}
    going = said(BEGIN, {"kind": "reserved"}, mark)
    text = going.say()
    assert "leaf.avhd into base.vhd" in text
    assert "42 %" in text
    assert "process 77 on here" in text
    assert "merge(plan_merge('/vms/leaf.avhd', into='/vms/base.vhd')) goes on" in text
    assert "`vhdkit merge /vms/leaf.avhd --into /vms/base.vhd` goes on" in as_typed(going.hint)
    assert (
        "(disk on fire)"
        in said(BEGIN, mark, {"kind": "stopped", "reason": "disk on fire", "destination": [9, 1.5]}).say()
    )
    assert "finishes what is left" in said(BEGIN, MERGED).say()
    kept = as_typed(said(undone, MERGED).hint)
    assert "`vhdkit undo drop /vms/undo.avhd`" in kept
    assert "`vhdkit rollback /vms/undo.avhd`" in kept
    dropping = said(undone, MERGED, {"kind": "dropping", "keep_file": False}).say()
    assert "rollback(" not in dropping
    assert "`vhdkit rollback /vms/undo.avhd` finishes it" in as_typed(said(undone, MERGED, {"kind": "rollback"}).hint)
    assert "0 %" in said(BEGIN | {"payload_bytes": 0}).say()


def without(name: str) -> Record:
    return {key: value for key, value in BEGIN.items() if key != name}


DAMAGED: dict[str, list[Record]] = {
    **{f"begin without {name}": [without(name)] for name in BEGIN},
    "unknown version": [BEGIN | {"version": 2}],
    "no sources": [BEGIN | {"sources": []}],
    "sources are no list": [BEGIN | {"sources": 7}],
    "a source is no object": [BEGIN | {"sources": ["leaf.avhd"]}],
    "negative size": [BEGIN | {"destination": FILE | {"size": -1}}],
    "size is text": [BEGIN | {"file_end": "many"}],
    "size is a fraction": [BEGIN | {"first": 0.5}],
    "pid is none": [BEGIN | {"pid": None}],
    "growth is a number": [BEGIN | {"growth": 5}],
    "unknown kind": [BEGIN, {"kind": "explode"}],
    "a kind that is a method": [BEGIN, {"kind": "say"}],
    "a kind that is a field": [BEGIN, {"kind": "checksum"}],
    "no kind": [BEGIN, {"offset": 1}],
    "kind is a list": [BEGIN, {"kind": ["mark"]}],
    "begins with a mark": [{"kind": "mark", "offset": 0, "bytes": 0, "mtime": 0.0}],
    "mark without bytes": [BEGIN, {"kind": "mark", "offset": 4, "mtime": 0.0}],
    "negative mark": [BEGIN, {"kind": "mark", "offset": -4, "bytes": 0, "mtime": 0.0}],
    "saved without offset": [BEGIN, {"kind": "saved"}],
    "merged without relinks": [BEGIN, {"kind": "merged", "destination": [1, 1]}],
    "merged without destination": [BEGIN, {"kind": "merged", "relinks": []}],
    "merged with three figures": [BEGIN, MERGED | {"destination": [1, 2, 3]}],
    "relinks are no list": [BEGIN, MERGED | {"relinks": 1}],
    "a relink without patches": [BEGIN, MERGED | {"relinks": [{"path": "a"}]}],
    "a patch is none": [BEGIN, MERGED | {"relinks": [{"path": "a", "patches": [{"offset": -1}]}]}],
    "dropping without keep_file": [BEGIN, {"kind": "dropping"}],
    "saved with a state that is none": [BEGIN, {"kind": "saved", "offset": 0, "held": 1, "undo": 5}],
    "saved with a state of half": [BEGIN, {"kind": "saved", "offset": 0, "held": 1, "undo": {"identity": "0:1"}}],
    "saved with a negative size": [BEGIN, {"kind": "saved", "offset": 0, "held": 1, "undo": SEEN | {"size": -1}}],
    "names of other files": [BEGIN, {"kind": "names", "sources": ["leaf.avhd"], "undo": ""}],
    "doubted without reason": [BEGIN, {"kind": "doubted"}],
    "stopped without reason": [BEGIN, {"kind": "stopped"}],
}


@pytest.mark.parametrize("found", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_whole_line_that_is_none_of_ours_is_a_journal_error(found: list[Record]) -> None:
    with pytest.raises(vhdkit.JournalError, match="no journal as they are written here") as caught:
        said(*found)
    assert caught.value.path == "/vms/base.vhd" + JOURNAL


@pytest.mark.parametrize("found", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_journal_stops_the_merge_and_no_reader(found: list[Record]) -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 3, 1), Snapshot(), put(1, 9, 2)))
    expected = plain_view(folder, paths)
    lie(folder, paths[1], records.encode(found))
    before = contents(folder)
    assert vhdkit_view(folder, paths[0]) == expected
    with pytest.raises(vhdkit.JournalError):
        fold(folder, paths, Merge())
    assert contents(folder) == before
    report = vhdkit.check(paths[0], chain=True, folder=folder)
    assert vhdkit.Corruption.MERGE_UNFINISHED in {finding.corruption for finding in report.findings}


def lie(folder: MemoryFolder, destination: str, raw: bytes) -> None:
    storage = folder.create(destination + JOURNAL)
    storage.write_at(0, raw)
    storage.close()


@pytest.mark.parametrize("raw", [b"", bytes(512), b"#" * 700, records.encode([BEGIN])[:-1]], ids=range(4))
def test_a_journal_that_holds_nothing_stops_nobody(raw: bytes) -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 3, 1), Snapshot(), put(1, 9, 2)))
    expected = plain_view(folder, paths)
    lie(folder, paths[1], raw)
    fold(folder, paths, Merge())
    assert list(contents(folder)) == [paths[1]]
    assert vhdkit_view(folder, paths[1]) == expected


# Writing it


def test_a_journal_is_its_owners_alone_and_never_taken_over(tmp_path: Path) -> None:
    base = str(tmp_path / "base.vhd")
    Path(base).touch()
    writer = JournalWriter.create(LocalFolder(), base)
    assert writer.storage.path == journal_path(base)
    if os.name == "posix":
        assert os.stat(journal_path(base)).st_mode & 0o777 == 0o600
    fields = {name: value for name, value in BEGIN.items() if name != "kind"}
    writer.write("begin", **fields)
    writer.close()
    with pytest.raises(FileExistsError):
        JournalWriter.create(LocalFolder(), base)
    journal = read_journal(LocalFolder(), base)
    assert journal is not None
    again = JournalWriter.append(LocalFolder(), journal)
    again.write("mark", offset=512, bytes=5, mtime=1.0)
    again.close()
    now = read_journal(LocalFolder(), base)
    assert now is not None
    assert (now.mark, now.checksum, now.end) == (512, again.journal.checksum, os.path.getsize(journal_path(base)))


def test_a_journal_goes_on_behind_its_last_whole_line() -> None:
    folder = MemoryFolder({"/b": b"", "/b" + JOURNAL: records.encode([BEGIN]) + b"torn" * 900})
    journal = read_journal(folder, "/b")
    assert journal is not None
    writer = JournalWriter.append(folder, journal)
    writer.write("mark", offset=512, bytes=1, mtime=1.0)
    writer.close()
    found, _, _ = taken_apart(bytes(folder["/b" + JOURNAL].content))
    assert [record["kind"] for record in found] == ["begin", "mark"]


def test_a_symbolic_link_in_the_journals_place_is_not_written_through(tmp_path: Path) -> None:
    paths = write_files(chain_over(Kind.DYNAMIC, Snapshot(), put(1, 9, 2)), tmp_path)
    innocent = tmp_path / "innocent"
    innocent.write_bytes(b"precious")
    os.symlink(innocent, str(paths[1]) + JOURNAL)
    with pytest.raises((OSError, vhdkit.VhdError)):
        vhdkit.merge(vhdkit.plan_merge(str(paths[0])))
    assert innocent.read_bytes() == b"precious"
    assert paths[0].exists()


# It travels with its folder


def of_three() -> ModelChain:
    middle = (Snapshot(), put(3, 20, 2), put(30, 5, 2))
    return chain_over(Kind.DYNAMIC, put(0, 9, 1), *middle, Snapshot(), put(12, 2, 3))


@pytest.mark.parametrize("stage", ["copying", "complete"])
def test_a_folder_that_was_moved_between_the_runs_is_gone_on_with(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_checkpoints(monkeypatch)
    chain = of_three()
    (tmp_path / "old").mkdir()
    paths = write_files(chain, tmp_path / "old")
    when = after_marks(1) if stage == "copying" else at_first("remove", "layer-1.avhd")
    cut_off(LocalFolder(), str(paths[1]), str(paths[2]), when)
    raw = Path(str(paths[2]) + JOURNAL).read_bytes()
    assert str(tmp_path) not in raw.decode()
    shutil.move(tmp_path / "old", tmp_path / "new place")
    new = tmp_path / "new place"
    plan = vhdkit.plan_merge(str(new / paths[1].name), into=str(new / paths[2].name))
    wanted = vhdkit.Resume.CONTINUES if stage == "copying" else vhdkit.Resume.FINISHES
    assert plan.resume is wanted
    vhdkit.merge(plan)
    assert sorted(os.listdir(new)) == sorted([paths[0].name, paths[2].name])
    assert vhdkit_view(LocalFolder(), str(new / paths[0].name)) == chain.view().tobytes()


# It is not believed


def complete() -> tuple[MemoryFolder, list[str], bytes]:
    """A merge that is complete, its child not relinked yet; beside it images that are none of its business."""
    folder, paths = in_memory(of_three())
    expected = plain_view(folder, paths)
    cut_off(folder, paths[1], paths[2], at_first("create", ".vhdkit-header"))
    for path in list(paths):
        storage = folder.create(path.replace("/vms/", "/innocent/"))
        storage.write_at(0, bytes(folder[path].content))
        storage.close()
    return folder, paths, expected


def patch_of(record: Record, number: int) -> Record:
    found: Record = record["relinks"][0]["patches"][number]
    return found


def set_source(**fields: object) -> Change:
    return lambda found: found[0]["sources"][0].update(fields)


def set_relink(**fields: object) -> Change:
    return lambda found: found[-1]["relinks"][0].update(fields)


def more_than_the_parent(found: list[Record]) -> None:
    """The relinking brings a new BAT entry along."""
    patches = found[-1]["relinks"][0]["patches"]
    extra = deepcopy(patches[-1]) | {"offset": 1536, "b": "AAAAAA==", "a": "/////w=="}
    patches.insert(0, extra)


def another_table(found: list[Record]) -> None:
    from base64 import b64decode, b64encode  # noqa: PLC0415 - only this lie takes it

    from tests.plainvhd import HEADER_CHECKSUM, seal  # noqa: PLC0415 - the same

    patch = patch_of(found[-1], -1)
    after = bytearray(b64decode(patch["a"]))
    after[16:24] = (4096).to_bytes(8, "big")
    patch["a"] = b64encode(seal(bytes(after), HEADER_CHECKSUM)).decode()


def another_place(found: list[Record]) -> None:
    patch_of(found[-1], -1)["offset"] = 4096


def short_header(found: list[Record]) -> None:
    patch = patch_of(found[-1], -1)
    patch["a"] = patch["b"] = "AAAA"


def same_header(found: list[Record]) -> None:
    """The header stays that of a child of the old parent."""
    patch = patch_of(found[-1], -1)
    patch["a"] = patch["b"]


LIES: dict[str, Change] = {
    "a source elsewhere": set_source(path="../innocent/layer-1.avhd"),
    "a source by absolute path": set_source(path="/innocent/layer-1.avhd"),
    "a source with another header": set_source(header="00" * 32),
    "a destination of another id": lambda found: found[0]["destination"].update(unique_id="00" * 16),
    "a relinked file elsewhere": set_relink(path="../innocent/layer-2.avhd"),
    "the destination relinked": set_relink(path="layer-0.vhd"),
    "no patches": set_relink(patches=[]),
    "more than the parent": more_than_the_parent,
    "another table": another_table,
    "another place": another_place,
    "a header that is none": short_header,
    "a header of another parent": same_header,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_complete_merges_journal_that_lies_changes_and_removes_nothing(lie: Change) -> None:
    folder, paths, expected = complete()
    rewrite(folder, paths[2] + JOURNAL, lie)
    before = contents(folder)
    with pytest.raises(vhdkit.VhdError):
        fold(folder, paths, Merge(depth_from=1, depth_to=2))
    assert contents(folder) == before
    assert vhdkit_view(folder, paths[0]) == expected


HARMLESS_LIES: dict[str, Change] = {
    "the destination as source": set_source(path="layer-0.vhd"),
    "the child as source": set_source(path="layer-2.avhd"),
    # None of its sources is there: it has nothing left to say, and all is merged once more.
    "a source of another id": set_source(unique_id="00" * 16),
    "another size": set_source(size=5),
    "another time": set_source(mtime=99.0),
}


@pytest.mark.parametrize("lie", HARMLESS_LIES.values(), ids=HARMLESS_LIES.keys())
def test_names_and_times_in_a_complete_merges_journal_decide_nothing(lie: Change) -> None:
    """The sources are those of the chain, found by their ids, and what they hold was read in the destination."""
    folder, paths, expected = complete()
    innocent = {path: raw for path, raw in contents(folder).items() if path.startswith("/innocent")}
    rewrite(folder, paths[2] + JOURNAL, lie)
    plan, result = fold(folder, paths, Merge(depth_from=1, depth_to=2))
    assert plan.resume in {vhdkit.Resume.FINISHES, None}
    assert result.removed == (paths[1],)
    assert contents(folder).items() >= innocent.items()
    assert vhdkit_view(folder, paths[0]) == expected


def test_the_same_journal_without_a_lie_is_finished() -> None:
    folder, paths, expected = complete()
    innocent = {path: raw for path, raw in contents(folder).items() if path.startswith("/innocent")}
    rewrite(folder, paths[2] + JOURNAL, len)
    fold(folder, paths, Merge(depth_from=1, depth_to=2))
    assert sorted(contents(folder)) == sorted([*innocent, paths[0], paths[2]])
    assert {path: bytes(folder[path].content) for path in innocent} == innocent
    assert vhdkit_view(folder, paths[0]) == expected


def set_undo(path: str) -> Change:
    return lambda found: found[0].update(undo=path, undo_id="11" * 16)


@pytest.mark.parametrize("path", ["layer-2.avhd", "layer-1.avhd", "../innocent/layer-1.avhd", "layer-0.vhd"])
@pytest.mark.parametrize("dropping", [False, True])
def test_an_undo_image_that_is_an_innocent_file_is_not_removed(path: str, dropping: bool) -> None:
    folder, paths, _ = complete()
    innocent = contents(folder)
    rewrite(folder, paths[2] + JOURNAL, set_undo(path))
    if dropping:
        drop = {"kind": "dropping", "keep_file": False}
        rewrite(folder, paths[2] + JOURNAL, lambda found: found.append(drop))
    named = JournalFile(path=paths[2] + JOURNAL).resolve(path)
    for call in (
        lambda: fold(folder, paths, Merge(depth_from=1, depth_to=2)),
        lambda: vhdkit.drop_undo(named, folder=folder),
        lambda: vhdkit.rollback(named, folder=folder),
    ):
        try:
            call()
        except (vhdkit.VhdError, FileNotFoundError):
            continue
    assert folder.exists(named)
    assert {path: raw for path, raw in contents(folder).items() if path.startswith("/innocent")} == {
        path: raw for path, raw in innocent.items() if path.startswith("/innocent")
    }


def begun(monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryFolder, list[str], bytes]:
    small_checkpoints(monkeypatch)
    folder, paths = in_memory(of_three())
    expected = plain_view(folder, paths)
    cut_off(folder, paths[1], paths[2], after_marks(1))
    return folder, paths, expected


def first(**fields: object) -> Change:
    return lambda found: found[0].update(fields)


WRONG_FIGURES: dict[str, Change] = {
    "blocks over the header": first(first=512, moved=0),
    "blocks beyond 2 TiB": first(first=1 << 50),
    "no stride": first(stride=0),
    "stride of no block": first(stride=512),
    "moved blocks": first(moved=7),
    "a huge count of moved blocks": first(moved=1 << 40),
    "the footer in the middle": first(file_end=4096),
    "a huge file": first(file_end=1 << 62),
    "another plan": first(plan="00" * 32),
    "another disk size": first(virtual_size=512),
    "a huge disk size": first(virtual_size=1 << 62),
    "no disk": first(virtual_size=0),
    "a growth of nothing": first(growth={}),
    "a growth of rubbish": first(growth={"old_count": "x"}),
    "a mark far beyond the disk": lambda found: found.append({"kind": "mark", "offset": 1 << 60, "bytes": 1 << 60}),
    "a mark at the end of the disk": lambda found: found.append({"kind": "mark", "offset": 40 * 512, "bytes": 10}),
    "a source that was another": set_source(unique_id="00" * 16),
    "a source of another header": set_source(header="00" * 32),
    "a source of another size": set_source(size=1),
    "one source more": lambda found: found[0]["sources"].append(found[0]["sources"][0]),
    "a table that is longer already": lambda found: found.append({"kind": "grown"}),
}


@pytest.mark.parametrize("lie", WRONG_FIGURES.values(), ids=WRONG_FIGURES.keys())
def test_wrong_figures_in_a_journal_cost_nothing(lie: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge begins again, or is refused; it never writes where the figures say."""
    folder, paths, expected = begun(monkeypatch)
    rewrite(folder, paths[2] + JOURNAL, lie)
    before = contents(folder)
    try:
        plan, _ = fold(folder, paths, Merge(depth_from=1, depth_to=2))
    except vhdkit.VhdError:
        assert contents(folder) == before
        return
    assert plan.resume in {vhdkit.Resume.RESTARTS, vhdkit.Resume.CONTINUES}
    assert sorted(contents(folder)) == sorted([paths[0], paths[2]])
    assert vhdkit_view(folder, paths[0]) == expected
    assert vhdkit.check(paths[0], chain=True, folder=folder).count(vhdkit.Level.ERROR) == 0


def test_another_users_journal_stops_the_merge_and_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths, expected = begun(monkeypatch)
    folder[paths[2] + JOURNAL].owner = 12345
    before = contents(folder)
    with pytest.raises(vhdkit.JournalError, match=r"another user.*the image's owner.*only if none did"):
        fold(folder, paths, Merge(depth_from=1, depth_to=2))
    assert vhdkit_view(folder, paths[0]) == expected
    assert contents(folder) == before
    folder[paths[2]].owner = 12345
    fold(folder, paths, Merge(depth_from=1, depth_to=2))
    assert vhdkit_view(folder, paths[0]) == expected


def test_an_undo_image_that_an_innocent_file_is_said_to_be_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths, expected = begun(monkeypatch)
    rewrite(folder, paths[2] + JOURNAL, first(undo="layer-2.avhd", undo_id="11" * 16))
    before = contents(folder)
    plan = vhdkit.plan_merge(paths[1], into=paths[2], folder=folder)
    assert [each for each in plan.obstacles if "undo image" in str(each) and isinstance(each, vhdkit.JournalError)]
    with pytest.raises(vhdkit.JournalError):
        vhdkit.merge(plan, folder=folder)
    assert contents(folder) == before
    assert vhdkit_view(folder, paths[0]) == expected


def test_the_records_are_plain_json_that_a_person_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths, _ = begun(monkeypatch)
    lines = bytes(folder[paths[2] + JOURNAL].content).decode().splitlines()
    kinds = [json.loads(line.split(" ", 1)[1])["kind"] for line in lines]
    assert kinds[:2] == ["begin", "reserved"]
    assert "mark" in kinds
