"""The list of this user's jobs on this machine, for any process to ask and to be heard in.

It is SQLite, opened for each call and never longer, so that it can be deleted, damaged or locked at any time without a
merge noticing: no merge needs it. Whoever works at a job writes the whole of it each time, so that a list that was lost
has it again with the next word. Requests to a job (cancel, pause, resume) are left in a column of their own, which
only whoever fulfils them clears.

The file is untrusted input: any program of this user can write to it. It must be a plain file of this user or of root,
with the tables that are made here and nothing else in its schema. A row that breaks a rule of `row` is left out with
one warning, and hides no other.

**Source**: docs/explanation/architecture.md.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from vhdkit.errors import ImageInUseError, JobError
from vhdkit.findings import printable
from vhdkit.job.job import Job, JobState
from vhdkit.job.job_log import remove_log
from vhdkit.job.registry_tables import (
    SCHEMA,
    SHOWN,
    Row,
    check_schema,
    files_of,
    job_of,
    jobs_of,
    number_anew,
    read_rows,
)
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.state_folder import check_plain, make_private, open_private, set_aside, state_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")

FILE = "jobs.db"
# A commit takes a millisecond; whoever waits longer than this waits for a process that is stopped.
_PATIENCE_SECONDS = 20
# Jobs that ended so long ago are forgotten when one is added.
HISTORY_SECONDS = 180 * 24 * 3600
_VERSION = 1
# What stands for a request where a job that has ended was taken off the list, and is kept for its history.
_REMOVED = "removed"
_IS_LISTED = f"(request != '{_REMOVED}' OR state < {JobState.COMPLETED:d})"
_LISTED = {True: "TRUE", False: _IS_LISTED}
# A sane row is a few thousand bytes; SQLite refuses to read or write longer ones than this.
_MOST_BYTES = 64 << 20
# Whoever had the damaged file open may still write to it, or to what lies beside it, when it has a new name.
_MOST_MENDS = 3
_COLUMNS = {"jobs": ["number", "id", "state", "changed", "request", "record"], "files": ["path", "id"]}
_DAMAGED = (
    "other tables",
    "malformed",
    "not a database",
    "no such table",
    "no such column",
    "no column named",
    "constraint failed",
    "disk I/O error",
)
# What a disk that is full says: that is no damage of the list.
_FULL = {"SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE", "SQLITE_FULL"}


class RegistryError(JobError):
    """The list of jobs cannot be read or written; merges go on without it."""


class Registry:
    """The list of jobs in a directory; that of `VHDKIT_STATE`, or the user's own, unless one is given.

    Every method raises RegistryError when the list cannot be had. One that is damaged is set aside, and a new one
    begun.
    """

    def __init__(self, directory: str | None = None, *, patience: float = _PATIENCE_SECONDS) -> None:
        self.patience = patience
        self.directory = directory or state_directory()
        self.path = paths.join(self.directory, FILE)

    # Writing

    def put(self, job: Job, *, clear_request: bool = False) -> None:
        """Add a job, or replace what was known of it."""
        record = self._row_of(job)

        def write(database: sqlite3.Connection) -> None:
            known = database.execute("SELECT record FROM jobs WHERE id = ?", (job.id,)).fetchone()
            if known is None:
                number_anew(database)
            database.execute(
                "INSERT INTO jobs (id, state, changed, record) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) "
                "DO UPDATE SET state = ?2, changed = ?3, record = ?4, "
                "request = CASE WHEN ?5 OR request = ?6 THEN '' ELSE request END",
                (job.id, job.state, job.changed, record, clear_request or job.state.is_finished, _REMOVED),
            )
            if known is None:
                _forget_old(database, job.changed)
            if known is None or files_of(known[0]) != job.files:
                _list_files(database, job)

        self._call(write, writes=True)

    def replace(self, known: Job, job: Job, *, clear_request: bool = True) -> bool:
        """Write a job if it is still what was `known`, and return whether it was: somebody else may have been first."""
        record = self._row_of(job)

        def write(database: sqlite3.Connection) -> bool:
            row = database.execute("SELECT record FROM jobs WHERE id = ?", (job.id,)).fetchone()
            # Not the text is compared: another version may have written more or fewer fields.
            if row is None or job_of(row[0]) != known:
                return False
            database.execute(
                "UPDATE jobs SET state = ?2, changed = ?3, record = ?4, "
                "request = CASE WHEN ?5 THEN '' ELSE request END WHERE id = ?1",
                (job.id, job.state, job.changed, record, clear_request),
            )
            if known.files != job.files:
                _list_files(database, job)
            return True

        return self._call(write, writes=True)

    def ask(self, job_id: str, request: str) -> None:
        """Leave a request to whoever works at a job: "cancel", "pause", "resume".

        One to cancel stays until it is fulfilled, whatever else is asked meanwhile.
        """
        sentence = "UPDATE jobs SET request = ? WHERE id = ? AND request != 'cancel'"
        self._call(lambda database: database.execute(sentence, (request, job_id)), writes=True)

    def fulfilled(self, job_id: str, request: str) -> None:
        """Take a request away, unless another has come meanwhile."""
        sentence = "UPDATE jobs SET request = '' WHERE id = ? AND request = ?"
        self._call(lambda database: database.execute(sentence, (job_id, request)), writes=True)

    def remove(self, job_id: str) -> None:
        """Forget a job."""

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM files WHERE id = ?", (job_id,))
            database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

        self._call(write, writes=True)
        remove_log(job_id)

    def hide(self, job_id: str) -> None:
        """Take a job that has ended off the list, and keep it for the history."""
        sentence = "UPDATE jobs SET request = ? WHERE id = ?"
        self._call(lambda database: database.execute(sentence, (_REMOVED, job_id)), writes=True)
        remove_log(job_id)

    # Asking

    def request(self, job_id: str) -> str:
        """Return what is asked of a job, "" if nothing is."""

        def read(database: sqlite3.Connection) -> str:
            row = database.execute("SELECT request FROM jobs WHERE id = ?", (job_id,)).fetchone()
            return str(row[0]) if row is not None else ""

        return self._call(read)

    def find(self, beginning: str) -> tuple[Job, ...]:
        """Return the jobs whose ids begin so."""
        wanted = beginning.lower()
        condition = f"id >= ? AND id < ? AND {_IS_LISTED}"
        # Ids are made of digits, a to f, and hyphens, all of which come before a z.
        return self._call(lambda database: jobs_of(read_rows(database, condition, (wanted, f"{wanted}z"))))

    def remove_unreadable(self, job_id: str) -> bool:
        """Remove the row of a job that cannot be read; return whether there was one."""

        def write(database: sqlite3.Connection) -> bool:
            for row in read_rows(database, "id = ?", (job_id.lower(),)):
                if row.reason():
                    database.execute("DELETE FROM files WHERE id = ?", (row.id,))
                    database.execute("DELETE FROM jobs WHERE number = ?", (row.number,))
                    return True
            return False

        return self._call(write, writes=True)

    def jobs(
        self,
        *,
        states: Sequence[JobState] = tuple(JobState),
        files: Sequence[str] | None = None,
        mentions: Sequence[str] | None = None,
        limit: int | None = None,
        with_removed: bool = False,
    ) -> tuple[Job, ...]:
        """Return the jobs that are in one of the states, oldest first; of those that ended the newest `limit`.

        With `files` only those that touch one of them; with `mentions` only those whose records have one of these
        stretches of JSON, wherever that is. With `with_removed` those that were taken off the list are among them.
        """
        listed = _LISTED[with_removed]
        condition, values = listed, list[bytes | str]()
        if files is not None:
            marks = ",".join("?" * len(files))
            condition = f"{listed} AND id IN (SELECT id FROM files WHERE path IN ({marks}))"  # noqa: S608 - marks only
            values += map(_key, files)
        if mentions is not None:
            condition += f" AND ({' OR '.join(['instr(record, ?)'] * len(mentions))})"
            # To read each of thousands takes many times as long.
            values += mentions
        going = [state for state in states if not state.is_finished]
        ended = [state for state in states if state.is_finished]

        def read(database: sqlite3.Connection) -> tuple[Job, ...]:
            rows: list[Row] = []
            for group, most in ((going, -1), (ended, -1 if limit is None else limit)):
                marks = ",".join("?" * len(group))
                rows += read_rows(database, f"state IN ({marks}) AND {condition}", [*group, *values], newest=most)
            # What has a state that is none is in no list, and is spoken of in the longest.
            if len(states) == len(JobState) and files is None and mentions is None:
                marks = ",".join("?" * len(JobState))
                rows += read_rows(database, f"state NOT IN ({marks})", list(JobState))
            return jobs_of(sorted(rows, key=lambda row: row.number))

        return self._call(read)

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state."""
        sentence = f"SELECT state, count(*) FROM jobs WHERE {_IS_LISTED} GROUP BY state"  # noqa: S608 - ours
        known = set(JobState)
        return self._call(
            lambda database: {JobState(state): count for state, count in database.execute(sentence) if state in known}
        )

    def waits_for(self, job_id: str, states: Sequence[JobState]) -> tuple[Job, ...]:
        """Return the jobs in one of the states that came before a job."""
        marks = ",".join("?" * len(states))
        condition = f"state IN ({marks}) AND number < (SELECT number FROM jobs WHERE id = ?)"  # noqa: S608 - marks only
        return self._call(lambda database: jobs_of(read_rows(database, condition, [*states, job_id])))

    def to_the_end(self, job_id: str) -> None:
        """Let a job that begins again wait behind those that wait already."""
        sentence = "UPDATE jobs SET number = (SELECT max(number) FROM jobs) + 1 WHERE id = ?"
        self._call(lambda database: database.execute(sentence, (job_id,)), writes=True)

    @staticmethod
    def real(path: str) -> str:
        """Return a path as the files of jobs are listed: absolute, links followed."""
        return LocalFolder().real(path)

    # The file

    def _row_of(self, job: Job) -> str:
        from vhdkit.job.registry_row import encode_job  # noqa: PLC0415 - msgspec is loaded by those that have a row

        try:
            return encode_job(job)
        except ValueError as error:
            message = f"the job {printable(job.id[:SHOWN])} cannot be listed: {error}"
            raise RegistryError(message, path=self.path) from error

    def _call(self, work: Callable[[sqlite3.Connection], _T], *, writes: bool = False) -> _T:
        until = time.monotonic() + self.patience
        mends = 0
        while True:
            try:
                with self._opened(writes=writes) as database:
                    if writes:
                        database.execute("BEGIN IMMEDIATE")
                    answer = work(database)
                    if writes:
                        database.execute("COMMIT")
                    return answer
            except sqlite3.Error as error:
                text = str(error)
                if _is_damage(error) and mends < _MOST_MENDS:
                    mends += 1
                    self._mend(error)
                elif "locked" not in text and "busy" not in text:
                    raise RegistryError(f"the list of jobs cannot be used: {text}", path=self.path) from error
                elif time.monotonic() > until:
                    message = "the list of jobs is held by another process; is one of them stopped?"
                    raise RegistryError(message, path=self.path) from error
                else:
                    time.sleep(0.02)
            except (OSError, ValueError) as error:
                # Whatever is wrong with the list, no merge may fail of it.
                raise RegistryError(f"the list of jobs cannot be used: {error}", path=self.path) from error

    @contextmanager
    def _opened(self, *, writes: bool) -> Iterator[sqlite3.Connection]:
        make_private(self.directory)
        for suffix in ("", "-wal", "-shm", "-journal"):
            check_plain(self.path + suffix)
        with closing(self._connection(writes=writes)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
            # No function that a schema names is called.
            database.execute("PRAGMA trusted_schema = OFF")
            # The list may lose its last words with the power, and is not worth a sync of the merge's disk.
            database.execute("PRAGMA synchronous = NORMAL")
            # One byte that went bad spoils the row that it is in, and hides no other.
            database.text_factory = _text
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise RegistryError("the list of jobs is of a later version of vhdkit", path=self.path)
            if version < _VERSION:
                _prepare(database)
            check_schema(database)
            yield database

    def _connection(self, *, writes: bool) -> sqlite3.Connection:
        folder = LocalFolder()
        if not writes and folder.exists(self.path) and not folder.may_write(self.directory):
            # Without a place for its shared memory a WAL cannot be read along: what it holds is not seen.
            return sqlite3.connect(f"file:{quote(self.path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
        return sqlite3.connect(self.path, timeout=self.patience, isolation_level=None)

    def _mend(self, trouble: sqlite3.Error) -> None:
        """Set a damaged file aside, once: another process may be doing the same."""
        try:
            with open_private(paths.join(self.directory, "mending")) as lock:
                lock.lock(exclusive=True)
                if self._is_damaged():
                    set_aside(self.path)
        except ImageInUseError:
            # Another process is at it.
            time.sleep(0.1)
        except OSError as error:
            message = f"the list of jobs is damaged ({trouble}) and cannot be set aside: {error.strerror}"
            raise RegistryError(message, path=self.path) from error

    def _is_damaged(self) -> bool:
        try:
            with self._opened(writes=True) as database:
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
                return bool(verdict != "ok") or any(_columns(database, table) != _COLUMNS[table] for table in _COLUMNS)
        except sqlite3.Error as error:
            return _is_damage(error)


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is no list as they are here."""
    return getattr(error, "sqlite_errorname", "") not in _FULL and any(word in str(error) for word in _DAMAGED)


def _key(path: str) -> bytes:
    """Return a path as it is looked for: one that is no text in any encoding is a path all the same."""
    return path.encode("utf-8", "surrogatepass")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")


def _prepare(database: sqlite3.Connection) -> None:
    # A file system without shared memory (some networks') has no WAL; the list works there all the same, slower.
    database.execute("PRAGMA journal_mode = WAL").fetchone()
    database.execute("BEGIN IMMEDIATE")
    for sentence in SCHEMA.split(";"):
        database.execute(sentence)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    """Return the names of a table's columns in their order, none if there is no such table."""
    return [name for (name,) in database.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def _list_files(database: sqlite3.Connection, job: Job) -> None:
    """Let a job be found by the files that it touches now."""
    database.execute("DELETE FROM files WHERE id = ?", (job.id,))
    database.executemany("INSERT OR IGNORE INTO files VALUES (?, ?)", [(_key(path), job.id) for path in job.files])


def _forget_old(database: sqlite3.Connection, now: float) -> None:
    old = "state >= ? AND changed < ?"
    values = (JobState.COMPLETED, now - HISTORY_SECONDS)
    for (job_id,) in database.execute(f"SELECT id FROM jobs WHERE {old}", values):  # noqa: S608 - ours
        remove_log(str(job_id))
    database.execute(f"DELETE FROM files WHERE id IN (SELECT id FROM jobs WHERE {old})", values)  # noqa: S608 - ours
    database.execute(f"DELETE FROM jobs WHERE {old}", values)  # noqa: S608 - ours
