"""What a job says to `logging`, under `vhdkit.job`, with the event ids that Hyper-V-VMMS has for it.

Each record has the fields `event_id` (19070 started · 19080 finished · 19090 interrupted or cancelled · 19100 failed ·
0 for the progress that is told every 10 %) and `job`, the `Job` as it was.

**Source**: docs/reference/vhd.md 5.4, the events of a background disk merge; the texts but the last are ours.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from vhdkit.errors import VhdError, WindowsCode
from vhdkit.findings import printable
from vhdkit.job.event_logs import default_event_log, handler_of
from vhdkit.job.job import JobState
from vhdkit.job.job_files import machine_of
from vhdkit.job.job_log import append_line
from vhdkit.job.job_record import record_of, utc_iso
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.job.job import Job
    from vhdkit.options import EventTarget

STARTED = 19070
FINISHED = 19080
INTERRUPTED = 19090
FAILED = 19100
PROGRESS = 0

logger = logging.getLogger("vhdkit.job")
# A program that has not asked for it is not told on its stderr.
logger.addHandler(logging.NullHandler())
_LOG_BEGINS = b'{"time": "'


def tell(job: Job) -> None:
    """Say what has become of a job: it runs, or it has ended."""
    name = f"'{job.machine}' background disk merge"
    which = f"(Job ID {job.id})"
    match job.state:
        case JobState.COMPLETED:
            _log(logging.INFO, FINISHED, f"{name} finished successfully in {job.elapsed:.1f} s. {which}", job)
        case JobState.TERMINATED if job.rolled_back:
            _log(logging.WARNING, INTERRUPTED, f"{name} was rolled back. {which}", job)
        case JobState.TERMINATED:
            _log(logging.WARNING, INTERRUPTED, f"{name} was cancelled at {job.percent} %. {which}", job)
        case JobState.KILLED:
            _log(logging.WARNING, INTERRUPTED, f"{name} was interrupted at {job.percent} %. {which}", job)
        case JobState.EXCEPTION:
            code = job.error_code or WindowsCode.FAIL
            _log(logging.ERROR, FAILED, f"{name} failed to complete: {job.error} (0x{code:08X}). {which}", job)
        case _:
            names = ", ".join(paths.basename(path) for path in job.sources)
            into = paths.basename(job.destination)
            _log(logging.INFO, STARTED, f"{name} has been started: {names} into {into}. {which}", job)


def tell_refused(child: str, machine: str, error: VhdError | OSError) -> None:
    """Say that a merge was refused before it was a job."""
    name = machine or machine_of(child)
    code = (error.windows_code if isinstance(error, VhdError) else None) or WindowsCode.FAIL
    text = f"'{name}' background disk merge failed to complete: {error} (0x{code:08X}). ({child})"
    # Who reads it may read no name that is no text.
    logger.error("%s", printable(text), extra={"event_id": FAILED})


def tell_progress(job: Job) -> None:
    """Say how far a job is."""
    text = f"'{job.machine}' background disk merge: {job.percent} %, {job.phase}. (Job ID {job.id})"
    _log(logging.INFO, PROGRESS, text, job)


def _log(level: int, event_id: int, text: str, job: Job) -> None:
    # The name of a file may hold anything: a percent sign, or what is no text and cannot be written as such.
    text, extra = printable(text), {"event_id": event_id, "job": job}
    record = logger.makeRecord(logger.name, level, "", 0, "%s", (text,), None, extra=extra)
    if logger.isEnabledFor(level):
        logger.handle(record)
    append_line(job.id, JsonLines().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        job: Job | None = getattr(record, "job", None)
        said: dict[str, object] = {
            "time": utc_iso(record.created),
            "level": record.levelname.lower(),
            "event-id": getattr(record, "event_id", 0),
            "message": record.getMessage(),
        }
        if job is not None:
            said |= record_of(job, record.created)
        return json.dumps(said)


class _LogFile(logging.FileHandler):
    """A file that events are appended to; one that cannot take them is told of once, and stops no merge."""

    is_lost = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say that the file cannot be written, unless that was said."""
        if self.is_lost:
            return
        self.is_lost = True
        error = sys.exc_info()[1]
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning("%s: what happens cannot be logged there: %s", printable(self.baseFilename), reason)
        del record, error


def log_to(path: str, job_id: str | None = None) -> logging.Handler:
    """Append what jobs say, or one job, to a file, a JSON object a line, until the handler is given to `stop_logging`.

    Raises:
        OSError: the file cannot be written.

    """
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(JsonLines())
    return _added(handler, job_id)


def _is_log(path: str) -> bool:
    """Whether a plain file is there that is empty or begins as a log of ours does."""
    start = bytearray(len(_LOG_BEGINS))
    try:
        with closing(LocalFolder().open(path)) as storage:
            count = storage.read_into(0, start)
    except OSError:
        return False
    return not count or bytes(start) == _LOG_BEGINS


@contextmanager
def logged(job: Job) -> Iterator[None]:
    """Give what is said of a job to the logs that it was begun with, as far as they are there and can be written."""
    handlers: list[logging.Handler] = []
    path, target = job.request.log_file, job.request.event_log or default_event_log()
    # A record is no command: it makes no file, and adds to none but a log.
    if path is not None and _is_log(path):
        with suppress(OSError):
            handlers.append(log_to(path, job.id))
    if target is not None:
        try:
            handlers.append(log_to_system(target, job.id))
        except OSError as error:
            logger.warning("%s cannot be written to: %s", target.value, printable(str(error)))
    try:
        yield
    finally:
        for handler in handlers:
            stop_logging(handler)


def log_to_system(target: EventTarget, job_id: str | None = None) -> logging.Handler:
    """Give what jobs say, or one job, but not how far they are, to a log of the system's until `stop_logging`.

    Raises:
        OSError: the system has no such log.

    """
    handler = handler_of(target)
    handler.addFilter(lambda record: bool(getattr(record, "event_id", 0)))
    return _added(handler, job_id)


def _added(handler: logging.Handler, job_id: str | None) -> logging.Handler:
    if job_id is not None:
        handler.addFilter(lambda record: getattr(getattr(record, "job", None), "id", job_id) == job_id)
    logger.addHandler(handler)
    logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    return handler


def show_events() -> logging.Handler:
    """Print what jobs say on stderr, a JSON object a line, until `stop_logging`: what `log_to` writes."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    return _added(handler, None)


def show_warnings() -> logging.Handler:
    """Print on stderr what is no event but trouble with the list of jobs, until `stop_logging`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.addFilter(lambda record: not hasattr(record, "event_id"))
    logger.addHandler(handler)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    """End what `log_to` began."""
    logger.removeHandler(handler)
    # What the file could not take was told of when it was said.
    with suppress(OSError):
        handler.close()
