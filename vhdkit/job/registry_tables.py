"""The tables of the registry: what makes them, what they may hold, and their rows.

They are untrusted. A file whose schema is another is refused before anything is read from it; a row is read whatever
types its columns have, and is a job only if `row.decode` says so.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from vhdkit.findings import Advice, printable, with_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhdkit.job.job import Job

SCHEMA = """
    CREATE TABLE IF NOT EXISTS jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state INTEGER NOT NULL,
        changed REAL NOT NULL, request TEXT NOT NULL DEFAULT '', record TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
    CREATE TABLE IF NOT EXISTS files (path BLOB NOT NULL, id TEXT NOT NULL, PRIMARY KEY (path, id)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS files_by_job ON files (id);
"""
# As SQLite keeps them.
_SENTENCES = {" ".join(each.replace("IF NOT EXISTS ", "").split()) for each in SCHEMA.split(";")}
# An id is shown to so many characters.
SHOWN = 64
_MOST_ROWS = 1 << 53
_left_out: dict[str, bool] = {}


def check_schema(database: sqlite3.Connection) -> None:
    """Refuse a file with other tables than are made here: a view or a trigger of somebody else's may never end.

    Raises:
        sqlite3.DatabaseError: it has others, by which it is set aside.

    """
    for kind, name, sentence in database.execute("SELECT type, name, sql FROM sqlite_master"):
        if sentence is not None and name != "sqlite_sequence" and " ".join(str(sentence).split()) not in _SENTENCES:
            raise sqlite3.DatabaseError(f"it has other tables than the list of jobs: {kind} {printable(str(name))}")


class Row:
    """One row as it lies in the table, of whatever types."""

    def __init__(self, number: int, job_id: object, state: object, record: object) -> None:
        self.number = number
        self.id = job_id
        self.state = state
        self.record = record

    def job(self) -> Job:
        """Return the job that it is of.

        Raises:
            ValueError: it is none.

        """
        from vhdkit.job.registry_row import decode_job  # noqa: PLC0415 - msgspec is loaded by those that have a row

        job = decode_job(self.record)
        if job.id != self.id or job.state != self.state:
            raise ValueError("its id or state is not what its record has")
        return job

    def reason(self) -> str:
        """Return why it is no job, "" if it is one."""
        try:
            self.job()
        except ValueError as error:
            return str(error)
        return ""


def read_rows(
    database: sqlite3.Connection, condition: str, values: Sequence[object], *, newest: int = -1
) -> tuple[Row, ...]:
    """Return the rows that fit a condition, oldest first; with `newest` no more than so many of the newest."""
    where = f"FROM jobs WHERE {condition} ORDER BY number DESC LIMIT ?"
    asked = [*values, newest]
    try:
        found = database.execute(f"SELECT number, id, state, record {where}", asked).fetchall()
    except sqlite3.DataError:
        # One of them is longer than SQLite may read here, which hides no other.
        numbers = database.execute(f"SELECT number {where}", asked).fetchall()
        found = [_read_alone(database, number) for (number,) in numbers]
    return tuple(Row(*each) for each in reversed(found))


def _read_alone(database: sqlite3.Connection, number: int) -> tuple[int, object, object, object]:
    row: list[object] = []
    for column in ("id", "state", "record"):
        try:
            sentence = f"SELECT {column} FROM jobs WHERE number = ?"  # noqa: S608 - ours
            row += database.execute(sentence, (number,)).fetchone()
        except sqlite3.DataError:
            row.append(None)
    return number, row[0], row[1], row[2]


def number_anew(database: sqlite3.Connection) -> None:
    """Give rows whose numbers are beyond all that are ever reached others: behind the largest no row can be added."""
    for row in database.execute("SELECT number FROM jobs WHERE number > ?", (_MOST_ROWS,)).fetchall():
        last = "SELECT coalesce(max(number), 0) + 1 FROM jobs WHERE number <= ?"
        database.execute(f"UPDATE jobs SET number = ({last}) WHERE number = ?", (_MOST_ROWS, *row))  # noqa: S608 - ours
    largest = "SELECT coalesce(max(number), 0) FROM jobs"
    sentence = f"UPDATE sqlite_sequence SET seq = ({largest}) WHERE name = 'jobs' AND seq > ?"  # noqa: S608 - ours
    database.execute(sentence, (_MOST_ROWS,))


def jobs_of(rows: Iterable[Row]) -> tuple[Job, ...]:
    """Return the jobs of rows; one that is none hides none of the others, and is warned of once."""
    found = []
    for row in rows:
        try:
            found.append(row.job())
        except ValueError as error:
            _warn(row, str(error))
    return tuple(found)


def _warn(row: Row, reason: str) -> None:
    name = printable(row.id[:SHOWN]) if isinstance(row.id, str) else f"in row {row.number}"
    hint = Advice.REMOVE_JOB.hint("{} takes it off the list", job=name) if row.id == name else None
    text = f"the list of jobs has no readable record of the job {name}, which is left out: {printable(reason)}"
    leave_out(with_hint(text, hint))


def leave_out(text: str) -> None:
    """Log why something is left out of the list, once in a process, however often the list is asked for."""
    if text in _left_out:
        return
    _left_out[text] = True
    from vhdkit.job.events import logger  # noqa: PLC0415 - rarely needed

    logger.warning("%s", text)


def take_left_out() -> list[str]:
    """Return what was left out since this was last called."""
    new = [text for text, is_new in _left_out.items() if is_new]
    _left_out.update(dict.fromkeys(new, False))
    return new


def job_of(record: object) -> Job | None:
    """Return the job of a row's record, None if it is of none."""
    from vhdkit.job.registry_row import decode_job  # noqa: PLC0415 - msgspec is loaded by those that have a row

    try:
        return decode_job(record)
    except ValueError:
        return None


def files_of(record: object) -> tuple[str, ...] | None:
    """Return the files of a row, None if it is no job: then they are not those of any."""
    known = job_of(record)
    return None if known is None else known.files
