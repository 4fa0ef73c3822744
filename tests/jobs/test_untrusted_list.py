"""The list of jobs as untrusted input: forged rows, tables, files and journals harm and hide nothing else."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

import vhdkit
from tests.cli.running import snapshot
from tests.forging import Forgery, drawn, forgeries
from tests.jobs.making import make_chain, view
from tests.jobs.test_reconcile import cut_at
from tests.unit.test_job import a_job
from vhdkit.cli.main import run
from vhdkit.errors import JobError, VhdError
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.job.registry_row import encode_job
from vhdkit.job.registry_tables import take_left_out
from vhdkit.job.spawn import task_of, work_at
from vhdkit.journal import merge_journal
from vhdkit.options import Follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.merge_journal import Journal

OLD = (Path(__file__).parent / "registry-0.1.0.sql").read_text()
FORGED = "0d4b8a3c-1111-4222-8333-444455556666"
SOUND = "00000001-0000-4000-8000-000000000000"
LISTS = (
    ["job", "list"],
    ["job", "list", "--json"],
    ["job", "list", "--format", "cim"],
    ["job", "list", "--where", "JobState = 9 and StartTime <> NULL"],
    ["job", "list", "--machine", "web"],
)
ACTS = (
    vhdkit.find_job,
    vhdkit.wait_for_job,
    vhdkit.pause_job,
    vhdkit.cancel_job,
    vhdkit.rollback_job,
    vhdkit.resume_job,
    vhdkit.remove_job,
)


def made_by_the_old_version(state: Path, vms: Path) -> None:
    state.mkdir()
    with closing(sqlite3.connect(state / "jobs.db")) as database:
        # The paths of the files table are bytes in hexadecimal.
        script = OLD.replace("2F766D73".upper(), str(vms).encode().hex().upper()).replace('"/vms', f'"{vms}')
        database.executescript(script)


def test_rows_of_the_first_version_go_on(state: Path, vms: Path) -> None:
    made_by_the_old_version(state, vms)
    leaf = make_chain(vms, "a", 1)
    before = view(leaf)
    found = {job.id[7]: job for job in vhdkit.jobs()}
    assert {name: job.state for name, job in found.items()} == {
        "a": JobState.KILLED,
        "b": JobState.COMPLETED,
        "c": JobState.EXCEPTION,
        "d": JobState.KILLED,
    }
    assert found["c"].request.follow is Follow.SETTLE
    assert (found["c"].machine, found["c"].error) == ("\udcff", "café")
    assert [job.id[7] for job in vhdkit.jobs(disk=str(vms / "b.vhd"))] == ["b"]
    for words in LISTS:
        assert run(words) == 0
    vhdkit.resume_job(found["a"].id)
    assert vhdkit.wait_for_job(found["a"].id, 60).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_words_of_another_command_in_an_old_row_are_refused_and_never_run(
    state: Path, vms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take_left_out()  # what another test's list has left out
    made_by_the_old_version(state, vms)
    with closing(sqlite3.connect(state / "jobs.db")) as database:
        database.execute('UPDATE jobs SET record = replace(record, \'["snapshot","settle"\', \'["job","rm"\')')
        database.commit()
    assert run(["job", "list"]) == 0
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert "0d4b8a3c-" in told
    assert [job.id[7] for job in vhdkit.jobs()] == ["a", "b", "d"]


# Rows


def put_both(vms: Path) -> Registry:
    """List a sound job, and one that is forged in what follows; its process is dead and its files are not there."""
    registry = Registry()
    registry.put(replace(a_job(), id=SOUND, state=JobState.COMPLETED, percent=100))
    leaf, base = str(vms / "gone.avhd"), str(vms / "gone.vhd")
    job = a_job(
        state=JobState.RUNNING,
        sources=(leaf,),
        destination=base,
        files=(leaf, base),
        written=(leaf, base),
        phase="copying",
        pid=99_999_999,
        host=os.uname().nodename,
        undo=str(vms / "undo.vhd"),
        identities={base: "0" * 32},
    )
    request = msgspec.structs.replace(
        job.request, child=leaf, into=base, rate=1, log_file=str(vms / "log"), follow=Follow.SETTLE
    )
    registry.put(replace(job, id=FORGED, request=request))
    return registry


def tried_with(forgery: Forgery, registry: Registry) -> bool:
    """Put a forged record in the place of the sound one, ask and steer in every way; return whether it was refused."""
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.execute("UPDATE jobs SET record = ?, request = '' WHERE id = ?", (forgery.text, FORGED))
    for words in LISTS[:3]:
        assert run(words) in {0, 1}, (words, forgery)
    listed = [job.id for job in vhdkit.jobs(finished=True, running=True)]
    assert SOUND in listed, forgery
    for act in ACTS:
        with suppress(VhdError, OSError):
            act(FORGED)
    vhdkit.jobs(disk="/vms/base.vhd")
    return len(listed) == 1


def hold_forgeries(found: list[Forgery], vms: Path, tmp_path: Path) -> int:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.vhd").write_bytes(b"precious")
    (outside / "empty").write_bytes(b"")
    before = snapshot(outside), snapshot(vms)
    refused = 0
    for forgery in found:
        registry = put_both(vms)
        refused += tried_with(forgery, registry)
        registry.remove_unreadable(FORGED)
        registry.remove(FORGED)
        assert (snapshot(outside), snapshot(vms)) == before, forgery
    return refused


@pytest.mark.parametrize("count", [60, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_forged_record_hides_no_other_job_and_only_known_errors_come_of_it(
    count: int, vms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = put_both(vms)
    record = json.loads(encode_job(registry.find(FORGED)[0]))
    texts = [str(tmp_path / "outside" / name) for name in ("precious.vhd", "new.vhd")]
    found = drawn(record, 17, count, texts=texts)
    refused = hold_forgeries(found, vms, tmp_path)
    assert "Traceback" not in capsys.readouterr().err
    assert len(found) / 5 < refused < len(found)
    with capsys.disabled():
        print(f"\n{len(found)} forged records, {refused} of them refused")  # noqa: T201 - figures for the commit


def test_a_forged_value_in_any_column_hides_no_other_job(vms: Path) -> None:
    values: list[object] = [None, -1, 0, 2**62, 1.5, float("inf"), "", "x", "\0", b"\xff", b"", "x" * 100_000]
    registry = put_both(vms)
    for column in ("number", "id", "state", "changed", "request", "record"):
        for value in values:
            put_both(vms)
            with closing(sqlite3.connect(registry.path, isolation_level=None)) as database, suppress(sqlite3.Error):
                database.execute(f"UPDATE jobs SET {column} = ? WHERE number = 2", (value,))  # noqa: S608 - ours
            for words in LISTS:
                assert run(words) == 0, (column, value)
            assert SOUND in [job.id for job in vhdkit.jobs()], (column, value)
            for act in ACTS[:-1]:
                with suppress(VhdError, OSError):
                    act(FORGED)
            os.unlink(registry.path)


def test_a_row_that_is_refused_is_named_once_and_can_be_removed(vms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = put_both(vms)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.execute('UPDATE jobs SET record = replace(record, \'"percent":0\', \'"percent":"x"\')')
    assert run(["job", "list"]) == 0
    told = capsys.readouterr()
    assert SOUND[:8] in told.out
    assert told.err.count("warning: ") == 1
    assert f"`vhdkit job rm {FORGED}`" in told.err
    assert run(["job", "show", FORGED]) == 1
    assert run(["job", "rm", FORGED]) == 0
    assert "removed" in capsys.readouterr().err
    assert run(["job", "list"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "UPDATE jobs SET number = 9223372036854775807 WHERE number = 2",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    ],
)
def test_a_number_behind_which_no_row_fits_keeps_no_job_from_being_listed(sentence: str, vms: Path) -> None:
    registry = put_both(vms)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.execute(sentence)
    new = "00000002-0000-4000-8000-000000000000"
    registry.put(replace(a_job(), id=new, state=JobState.COMPLETED))
    registry.to_the_end(new)
    assert [job.id for job in vhdkit.jobs()] == [SOUND, FORGED, new]


def test_a_row_longer_than_any_job_hides_no_other(vms: Path) -> None:
    registry = put_both(vms)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.execute("UPDATE jobs SET record = CAST(zeroblob(?) AS TEXT) WHERE number = 2", (100 << 20,))
    assert [job.id for job in vhdkit.jobs()] == [SOUND]


def test_a_record_adds_to_no_file_that_is_no_log(vms: Path, tmp_path: Path) -> None:
    registry = put_both(vms)
    (job,) = registry.find(FORGED)
    for name, held in {"keys": b"ssh-ed25519 AAAA", "new": None, "log": b'{"time": "2026-'}.items():
        path = tmp_path / name
        if held is not None:
            path.write_bytes(held)
        registry.put(replace(job, request=msgspec.structs.replace(job.request, log_file=str(path))))
        assert vhdkit.find_job(FORGED).state is JobState.KILLED
        assert path.exists() is (held is not None)
        assert held is None or (path.read_bytes() == held) is (name == "keys")


# The file and its tables


def a_link(path: Path) -> None:
    os.rename(path, f"{path}.elsewhere")
    os.symlink(f"{path}.elsewhere", path)


def a_dangling_link(path: Path) -> None:
    path.unlink()
    os.symlink(f"{path}.elsewhere", path)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_pipe_beside_it(path: Path) -> None:
    Path(f"{path}-wal").unlink(missing_ok=True)
    os.mkfifo(f"{path}-wal")


def of_another_user(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, 4242, 4242)


@pytest.mark.parametrize("forge", [a_link, a_dangling_link, a_pipe, a_pipe_beside_it, of_another_user])
@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_a_list_that_is_no_plain_file_of_this_user_is_refused_unopened(
    forge: Callable[[Path], None], mode: int, vms: Path, state: Path
) -> None:
    registry = put_both(vms)
    forge(Path(registry.path))
    names = sorted(os.listdir(state))
    state.chmod(mode)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            vhdkit.jobs()
        except RegistryError as error:
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(60)
    state.chmod(0o700)
    assert not asking.is_alive(), "it hangs"
    assert len(failures) == 1
    assert "VHDKIT_STATE" in str(failures[0])
    assert sorted(os.listdir(state)) == names


ENDLESS = "WITH RECURSIVE n(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM n) SELECT number FROM n"
_ROWS = "SELECT *, 9 AS state, 7 AS id, 7 AS record FROM"
_VIEW = f"CREATE VIEW jobs AS {ENDLESS.replace('SELECT number FROM', _ROWS)}"


@pytest.mark.parametrize(
    "sentences",
    [
        f"DROP TABLE jobs; {_VIEW}",
        f"CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN {ENDLESS}; END",
        "CREATE TRIGGER t AFTER INSERT ON jobs BEGIN DELETE FROM jobs; END",
        "CREATE INDEX more ON jobs (abs(state))",
    ],
    ids=["a view for a table", "an endless trigger", "a trigger that removes", "an index"],
)
def test_a_list_with_another_schema_is_set_aside_before_it_is_read(sentences: str, vms: Path, state: Path) -> None:
    registry = put_both(vms)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.executescript(sentences)
    assert vhdkit.jobs() == ()
    put_both(vms)
    assert len(vhdkit.jobs()) == 2
    assert len([name for name in os.listdir(state) if name.startswith("jobs.db.damaged-")]) >= 1


# Journals


def signed(lines: list[dict[str, object]]) -> bytes:
    """Return journal lines with the checksums that they should have."""
    raw, previous = b"", ""
    for line in lines:
        text = json.dumps(line, sort_keys=True, separators=(",", ":"))
        previous = sha256((previous + text).encode()).hexdigest()
        whole = f"{previous} {text}".encode()
        raw += whole.ljust(-(-(len(whole) + 1) // 512) * 512 - 1) + b"\n"
    return raw


@pytest.mark.parametrize("started", ["1" + "0" * 400, "Infinity", "NaN", "1e300", "1e12", "-1e13"])
def test_a_search_over_junk_journals_adds_nothing_that_breaks_later_lists(
    started: str, vms: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_chain(vms, "a", 1)
    sound = cut_at(vms, "copying")
    (vms / "b").mkdir()
    for name in ("a.vhd", "a_0.avhd"):
        (vms / "b" / name).write_bytes((vms / name).read_bytes())
    raw = (vms / "a.vhd.vhdkit-journal").read_bytes()
    lines = [json.loads(line[65:]) for line in raw.splitlines()]
    forged = signed([{**lines[0], "job": FORGED, "started": "STARTED"}, *lines[1:]])
    text = forged.splitlines()[0][65:].rstrip().decode().replace('"STARTED"', started)
    first = f"{sha256(text.encode()).hexdigest()} {text}".encode()
    (vms / "b" / "a.vhd.vhdkit-journal").write_bytes(first.ljust(-(-(len(first) + 1) // 512) * 512 - 1) + b"\n")
    for words in ([*LISTS[0], "--search", str(vms)], *LISTS):
        assert run(words) == 0
    assert [job.id for job in vhdkit.jobs()] == [sound]
    assert "Traceback" not in capsys.readouterr().err
    assert state.exists()


def test_a_search_goes_on_over_a_journal_that_vanishes_meanwhile(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chain(vms, "a", 1)
    cut_at(vms, "copying")
    vhdkit.remove_job(vhdkit.jobs()[0].id)
    read = merge_journal.read_journal

    def read_and_remove(folder: object, destination: str) -> Journal | None:
        found = read(folder, destination)  # type: ignore[arg-type] # any folder
        os.unlink(f"{destination}.vhdkit-journal")
        return found

    monkeypatch.setattr("vhdkit.job.recover.read_journal", read_and_remove)
    assert vhdkit.jobs(search=[str(vms)]) == ()


# The task of a background process


def test_a_background_process_refuses_what_is_no_task(vms: Path) -> None:
    task = json.loads(task_of(a_job(), str(vms)))
    forged = [each.text for each in forgeries(task) if each.where in {".row", ""}]
    for text in (*forged, "", "[]", "null"):
        with pytest.raises(JobError, match="no task"):
            work_at(text.encode("utf-8", "surrogatepass"))
