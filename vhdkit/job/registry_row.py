"""A job as one row of the registry: JSON text, held against types and ranges when it is read and when it is written.

Any program of this user can write to the registry, so a row is untrusted. A row that breaks a rule is refused whole;
nothing of it is used. Version 1 of the registry, which vhdkit 0.1.0 wrote first, kept the words of a command in
`afterwards`. They are read as the `Follow` that they meant, and never run.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import fields
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vhdkit.job.job import Job, JobState
from vhdkit.journal.field_types import ClockTime, Size
from vhdkit.options import Files, Follow, MergeRequest, Path
from vhdkit.storage import paths

_ENCODING, _ON_ERROR = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_MOST_TEXT = 65_536
# The text of one row: 30,000 paths of the usual length.
MOST_ROW = 4 << 20

Text = Annotated[str, Meta(max_length=_MOST_TEXT)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
_Words = Annotated[tuple[Path, ...], Meta(max_length=8)]
Id = Annotated[str, Meta(pattern=r"\A[0-9a-f-]{1,36}\Z")]

# What fields of a job are called in a row, where that differs: version 1 called a request so.
_KEYS = {"request": "wishes"}


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=_KEYS):
    id: Id
    state: JobState
    request: MergeRequest
    sources: Files
    destination: Path
    files: Files
    written: Files
    machine: Path
    phase: Annotated[str, Meta(max_length=64)]
    percent: Annotated[int, Meta(ge=0, le=100)]
    bytes_done: Size
    bytes_total: Size
    rate: Annotated[float, Meta(ge=0, le=1e18)]
    submitted: ClockTime
    started: ClockTime | None
    ended: ClockTime | None
    changed: ClockTime
    state_changed: ClockTime
    elapsed: Seconds
    runs: Annotated[int, Meta(ge=0, lt=1 << 31)]
    pid: Annotated[int, Meta(ge=0, lt=1 << 32)]
    born: Annotated[str, Meta(max_length=256)]
    host: Annotated[str, Meta(max_length=1024)]
    user: Annotated[str, Meta(max_length=1024)]
    error: Text
    error_class: Annotated[str, Meta(max_length=256)]
    error_code: Annotated[int, Meta(ge=0, lt=1 << 32)]
    undo: Path
    rolled_back: bool
    identities: dict[Path, Annotated[str, Meta(pattern=r"\A[0-9a-f]{0,32}\Z")]]


def encode_job(job: Job) -> str:
    """Return a job as the text of a row, in ASCII.

    Raises:
        ValueError: `decode` would refuse it.

    """
    # What it waits for is asked anew each time.
    names = [field.name for field in fields(job) if field.name != "wait"]
    record = {_KEYS.get(name, name): msgspec.to_builtins(getattr(job, name)) for name in names}
    # What failed may list thousands of files. The beginning says what went wrong.
    record["error"] = record["error"][:_MOST_TEXT]
    text = json.dumps(record, separators=(",", ":"))
    decode_job(text)
    return text


def decode_job(text: object) -> Job:
    """Return the job that the text of a row describes.

    Raises:
        ValueError: it describes none: a field is missing, unknown, given twice, of a wrong type or out of its range.

    """
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("it is no text in ASCII")
    if len(text) > MOST_ROW:
        raise ValueError(f"it has {len(text)} characters, more than {MOST_ROW}")
    row = msgspec.convert(_with_follow(parse_once(text)), _Row)
    _check_paths(row)
    return Job(**{name: getattr(row, name) for name in _Row.__struct_fields__})


def parse_once(text: str | bytes) -> Any:  # noqa: ANN401 - any JSON
    """Return what JSON says; unlike `json.loads` refuse repeated keys, NaN and infinities.

    Raises:
        ValueError: it is no such JSON.

    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _check_paths(row: _Row) -> None:
    """Refuse paths that no job is given: those that are not absolute, or that no file can have."""
    lists = (row.sources, row.files, row.written, row.request.paths)
    named = (row.destination, row.undo)
    for path in {*filter(None, named), *(path for each in lists for path in each)}:
        # UnicodeEncodeError is a ValueError.
        path.encode(_ENCODING, _ON_ERROR)
        if "\0" in path or paths.abspath(path) != path:
            raise ValueError("a path is not absolute, or no file can have it")


def _with_follow(record: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return the record of a row with the `Follow` that the words meant which version 1 kept.

    `snapshot settle` is the only command that it ever wrote.
    """
    asked = record.get(_KEYS["request"]) if isinstance(record, dict) else None
    if not isinstance(asked, dict) or "afterwards" not in asked:
        return record
    words = msgspec.convert(asked["afterwards"], _Words)
    if words and words[:2] != ("snapshot", "settle"):
        raise ValueError("what is to follow it is unknown")
    asked = {key: value for key, value in asked.items() if key != "afterwards"}
    return record | {_KEYS["request"]: asked | ({"follow": Follow.SETTLE} if words else {})}
