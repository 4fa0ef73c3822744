"""A job as one row of the registry: JSON text, held against types and ranges when it is read and when it is written.

Any program of this user can write to the registry, so a row is untrusted. A row that breaks a rule is refused whole;
nothing of it is used. Version 1 of the registry, which vhdkit 0.1.0 wrote first, kept the words of a command in
`afterwards`. They are read as the `Follow` that they meant, and never run.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vhdkit.job.job import Follow, Job, JobState, Wishes
from vhdkit.storage import paths

_ENCODING, _ON_ERROR = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
# The longest path of Windows; Linux has 4,096 bytes.
_MOST_PATH = 32_768
_MOST_TEXT = 65_536
# More than a chain of 1,024 layers with every child of every one of them.
_MOST_FILES = 1 << 20
# The text of one row: 30,000 paths of the usual length.
MOST_ROW = 4 << 20

Path = Annotated[str, Meta(max_length=_MOST_PATH)]
Text = Annotated[str, Meta(max_length=_MOST_TEXT)]
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Files = Annotated[tuple[Path, ...], Meta(max_length=_MOST_FILES)]
# From 1970 to the day before the last that a calendar of four digits has, which no time zone moves out of it.
Moment = Annotated[float, Meta(ge=0, le=253_402_214_400)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
Id = Annotated[str, Meta(pattern=r"\A[0-9a-f-]{1,36}\Z")]


class _Wishes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    child: Path
    into: Path | None = None
    to: Path | None = None
    keep_sources: bool = False
    undo: Path | None = None
    relink_siblings: bool = False
    verify: bool = False
    resume: bool = False
    search: Files = ()
    parent_map: dict[Path, Path] = {}
    parent: Path | None = None
    accept_ended: bool = False
    rate: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None
    log_file: Path | None = None
    follow: Follow | None = None
    afterwards: Annotated[tuple[Path, ...], Meta(max_length=8)] = ()


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Id
    state: JobState
    wishes: _Wishes
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
    submitted: Moment
    started: Moment | None
    ended: Moment | None
    changed: Moment
    state_changed: Moment
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


def encode(job: Job) -> str:
    """Return a job as the text of a row, in ASCII.

    Raises:
        ValueError: `decode` would refuse it.

    """
    record = asdict(job)
    # What failed may list thousands of files. The beginning says what went wrong.
    record["error"] = record["error"][:_MOST_TEXT]
    text = json.dumps(record, separators=(",", ":"))
    decode(text)
    return text


def decode(text: object) -> Job:
    """Return the job that the text of a row describes.

    Raises:
        ValueError: it describes none: a field is missing, unknown, given twice, of a wrong type or out of its range.

    """
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("it is no text in ASCII")
    if len(text) > MOST_ROW:
        raise ValueError(f"it has {len(text)} characters, more than {MOST_ROW}")
    row = msgspec.convert(parse_once(text), _Row)
    _check_paths(row)
    fields = {name: getattr(row, name) for name in _Row.__struct_fields__}
    asked = {name: getattr(row.wishes, name) for name in _Wishes.__struct_fields__}
    words = asked.pop("afterwards")
    if words:
        asked["follow"] = _follow_of(words)
    return Job(**{**fields, "wishes": Wishes(**asked)})


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
    asked = row.wishes
    named = (asked.child, asked.into, asked.to, asked.undo, asked.parent, asked.log_file, row.destination, row.undo)
    lists = (row.sources, row.files, row.written, asked.search, tuple(asked.parent_map.values()))
    for path in {*filter(None, named), *(path for each in lists for path in each)}:
        # UnicodeEncodeError is a ValueError.
        path.encode(_ENCODING, _ON_ERROR)
        if "\0" in path or paths.abspath(path) != path:
            raise ValueError("a path is not absolute, or no file can have it")


def _follow_of(words: tuple[str, ...]) -> Follow:
    """Return what a command meant that version 1 kept: `snapshot settle` is the only one that it ever wrote."""
    if words[:2] != ("snapshot", "settle"):
        raise ValueError("what is to follow it is unknown")
    return Follow.SETTLE
