"""Jobs as people and programs get to see them."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from vhdkit.cli.output import path_text, size_text
from vhdkit.cli.time_text import local_text
from vhdkit.command_hints import commands_of
from vhdkit.findings import printable
from vhdkit.job.job import JobState
from vhdkit.job.job_record import record_of
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.job.job import Job

# An id is cut to so many characters where that many tell it from the others.
_ID_CHARACTERS = 8
_HEADINGS = ("ID", "STATE", "DONE", "MACHINE", "RATE", "LEFT", "MERGE")
# A line is no longer than a terminal is wide; what the other columns leave is the last one's.
_LINE = 80
_GAP = "  "
# What a job's state is called beside the words of `JobState`.
ROLLED_BACK = "rolled back"
PHASES = ("reserving", "verifying", "finishing", "rolling back")
_LEAST_MERGE = 8
_MOST_MACHINE = 12
_MOST_STATE = 12
# The first letters of a GUID, and the others.
_GUID = re.compile(r"([0-9A-Fa-f]{4})[0-9A-Fa-f]{4}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def describe_job(job: Job) -> dict[str, Any]:
    """Return a job as `--json` prints it: as events have it, with the commands that let a pending one go on."""
    record = record_of(job)
    if job.wait is not None:
        commands = commands_of(job.wait.hint) if job.wait.hint is not None else ()
        record["waits"] |= {"commands": list(commands)}
    return record


def job_table(jobs: Sequence[Job]) -> list[str]:
    """Return jobs as lines of columns, under a line of headings, each of at most 80 characters.

    Behind them stands for each that waits why.
    """
    shortest = shortest_ids(jobs)
    rows = [_HEADINGS, *(_cells(job, shortest) for job in jobs)]
    others = [row[:-1] for row in rows]
    left = max(_LEAST_MERGE, _LINE - len(_GAP) - max(map(len, columns_of(others))))
    lines = columns_of([(*cells, _shortened(row[-1], left)) for cells, row in zip(others, rows, strict=True)])
    return lines + [f"{job.id[:shortest]} waits: {job.wait}" for job in jobs if job.wait is not None]


def _shortened(text: str, width: int) -> str:
    """Return text shortened to that many characters, the middle left out."""
    if len(text) <= width:
        return text
    begin = (width - 1) // 2
    return f"{text[:begin]}…{text[len(text) - (width - 1 - begin) :]}"


def job_rows(job: Job) -> list[tuple[str, object]]:
    """Return all that is known of a job, as names and values."""
    now = time.time()
    rows: list[tuple[str, object]] = [("job", job.id), ("state", state_text(job)), ("machine", job.machine)]
    rows += [("merge", path_text(path)) for path in job.sources]
    rows.append(("into", path_text(job.destination)))
    if job.undo:
        rows.append(("undo image", path_text(job.undo)))
    rows += _progress_rows(job)
    rows.append(("submitted", local_text(job.submitted)))
    rows += [("started", local_text(job.started))] if job.started else []
    rows += [("ended", local_text(job.ended))] if job.ended else []
    rows.append(("took" if job.state.is_finished else "elapsed", duration(job.elapsed_at(now))))
    if job.runs > 1:
        rows.append(("runs", job.runs))
    rows += [("by", f"{job.user}, process {job.pid} on {job.host}")] if job.pid else []
    rows += [("waits", str(job.wait))] if job.wait is not None else []
    if job.error:
        code = f" (0x{job.error_code:08X})" if job.error_code else ""
        rows.append(("error", f"{job.error}{code}"))
    rows += [("next", command) for command in _next(job)]
    return rows


def _progress_rows(job: Job) -> list[tuple[str, object]]:
    done = f"{job.percent} %"
    if job.bytes_total:
        done += f", {size_text(job.bytes_done)} of {size_text(job.bytes_total)}"
    rows: list[tuple[str, object]] = [("done", done)]
    if job.wait is not None and not job.pid:
        rows.append(("phase", "not begun"))
    elif not job.state.is_finished:
        rows += [("phase", job.phase or "not begun"), ("rate", _rate(job) or "not known yet")]
        rows.append(("time left", _left(job) or "not known yet"))
        rows.append(("may be cancelled", "yes" if job.is_cancellable else "no, it is finishing"))
    return rows


def job_line(job: Job) -> str:
    """Return in one line how a job is."""
    return f"{job.id}  {state_text(job)}" + ("" if job.rolled_back else f", {job.percent} %")


def duration(seconds: float) -> str:
    """Return a stretch of time for people.

    >>> duration(3.21), duration(75), duration(3 * 3600 + 62), duration(90000)
    ('3.2 s', '1:15 min', '3:01 h', '1 d 1:00 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02} h"
    return f"{hour}:{minute:02} h" if hour else f"{minute}:{second:02} min"


def _cells(job: Job, shortest: int) -> tuple[str, ...]:
    names = [_file_name(path) for path in job.sources[:1]]
    more = f" (+{len(job.sources) - 1})" if len(job.sources) > 1 else ""
    return (
        job.id[:shortest],
        short_state(job),
        "" if job.rolled_back else f"{job.percent} %",
        short_machine(job),
        _rate(job),
        _left(job),
        f"{''.join(names)}{more} -> {_file_name(job.destination)}",
    )


def _file_name(path: str) -> str:
    """Return a file's name, with a few letters of the GUID in it.

    >>> _file_name("/vms/web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd")
    'web01_3A7F….avhd'
    """
    return _GUID.sub(r"\1…", printable(paths.basename(path)))


def short_state(job: Job) -> str:
    """Return how a job is, in the width of a column."""
    return _shortened(state_text(job), _MOST_STATE)


def short_machine(job: Job) -> str:
    """Return the name of a job's machine, in the width of a column."""
    return _shortened(printable(job.machine), _MOST_MACHINE)


def columns_of(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines of columns, each as wide as its widest cell."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [_GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def shortest_ids(jobs: Sequence[Job]) -> int:
    """Return how many characters tell the ids from each other."""
    length = _ID_CHARACTERS
    while len({job.id[:length] for job in jobs}) < len({job.id for job in jobs}):
        length += 1
    return length


def state_text(job: Job) -> str:
    """Return how a job is, in a word or two: its state, or while it runs its phase."""
    if job.rolled_back:
        return ROLLED_BACK
    if job.state is JobState.RUNNING and job.phase not in {"", "copying"}:
        return printable(job.phase)
    return job.state.plain


def _rate(job: Job) -> str:
    return f"{job.rate / (1 << 20):.1f} MiB/s" if job.rate and not job.state.is_finished else ""


def _left(job: Job) -> str:
    left = job.seconds_left
    return "" if left is None else duration(left)


def _next(job: Job) -> list[str]:
    """Return the commands that make sense now."""
    if job.wait is not None and not job.pid:
        verbs = ["resume", "wait"] if job.state is JobState.SERVICE else ["wait"]
    elif job.state is JobState.SUSPENDED:
        verbs = ["resume", "cancel"]
    elif not job.state.is_finished:
        verbs = ["watch", "pause", "cancel"] if job.is_cancellable else ["watch"]
    else:
        verbs = ["resume"] if job.state.is_resumable and not job.rolled_back else []
        verbs += ["rollback"] if job.undo and not job.rolled_back else []
    return [f"`vhdkit job {verb} {job.id[:_ID_CHARACTERS]}`" for verb in verbs]
