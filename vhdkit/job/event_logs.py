"""The logs of the system that get what jobs say: syslog, systemd's journal, and the Application log of Windows.

Each event has Hyper-V-VMMS's id for it. In syslog it stands before the text, in brackets; in the journal it is the
field VHDKIT_EVENT_ID, beside VHDKIT_JOB, VHDKIT_MACHINE and VHDKIT_STATE; in the Application log it is the event's own.

The last is written by what Windows documents of RegisterEventSourceW and ReportEventW, and was never tried on Windows.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import logging.handlers
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from vhdkit.options import EventTarget
from vhdkit.storage.environment import value_of

if TYPE_CHECKING:
    from vhdkit.job.job import Job

_NAME = "vhdkit"
_SYSLOG = "/dev/log"
_JOURNAL = "/run/systemd/journal/socket"
# What ReportEventW calls an error, a warning and information.
_EVENT_TYPES = {logging.ERROR: 1, logging.WARNING: 2}
_INFORMATION = 4


def default_event_log() -> EventTarget | None:
    """Return the log that `VHDKIT_EVENTS` names for every job, None if it names none."""
    with suppress(ValueError):
        return EventTarget(value_of("VHDKIT_EVENTS").lower())
    return None


def handler_of(target: EventTarget, address: str | None = None) -> logging.Handler:
    """Return what writes to a log of the system's; `address` is the socket of one that does not lie where it should.

    Raises:
        OSError: the system has no such log.

    """
    match target:
        case EventTarget.SYSLOG:
            return _Syslog(address or _SYSLOG)
        case EventTarget.JOURNALD:
            return _Journal(address or _JOURNAL)
        case EventTarget.EVENTLOG:
            return _WindowsLog()


class _Syslog(logging.handlers.SysLogHandler):
    """The local syslog, in the words `vhdkit: [19080] TEXT`."""

    def __init__(self, address: str) -> None:
        super().__init__(address, logging.handlers.SysLogHandler.LOG_DAEMON)
        self.ident = f"{_NAME}: "
        self.append_nul = False

    def format(self, record: logging.LogRecord) -> str:
        return f"[{getattr(record, 'event_id', 0)}] {record.getMessage()}"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Stay silent: a log must not fail a merge, and the stderr of a background job has no reader."""


class _Journal(logging.Handler):
    """systemd's journal, in its native protocol: one datagram an event."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            error.filename = address
            raise

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._socket.send(journal_datagram(record))

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_datagram(record: logging.LogRecord) -> bytes:
    """Return an event as systemd's journal takes it: a field a line, or its length and bytes where it has several."""
    job: Job | None = getattr(record, "job", None)
    fields: dict[str, Any] = {
        "MESSAGE": record.getMessage(),
        "PRIORITY": {logging.ERROR: 3, logging.WARNING: 4}.get(record.levelno, 6),
        "SYSLOG_IDENTIFIER": _NAME,
        "VHDKIT_EVENT_ID": getattr(record, "event_id", 0),
    }
    if job is not None:
        fields |= {"VHDKIT_JOB": job.id, "VHDKIT_MACHINE": job.machine, "VHDKIT_STATE": job.state.plain}
    return b"".join(_field(name, str(value).encode("utf-8", "backslashreplace")) for name, value in fields.items())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


class _WindowsLog(logging.Handler):
    """The Application log of Windows, under the source `vhdkit`; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self._library: Any = getattr(ctypes, "WinDLL", _no_windows)("advapi32", use_last_error=True)
        self._library.RegisterEventSourceW.restype = ctypes.c_void_p
        self._source = ctypes.c_void_p(self._library.RegisterEventSourceW(None, _NAME))
        if not self._source:
            raise OSError(errno.EACCES, "the Application log cannot be written to", _NAME)

    def emit(self, record: logging.LogRecord) -> None:
        kind = _EVENT_TYPES.get(record.levelno, _INFORMATION)
        texts = (ctypes.c_wchar_p * 1)(record.getMessage())
        number = getattr(record, "event_id", 0)
        self._library.ReportEventW(self._source, kind, 0, number, None, 1, 0, texts, None)

    def close(self) -> None:
        self._library.DeregisterEventSource(self._source)
        super().close()


def _no_windows(_name: str, *, use_last_error: bool) -> NoReturn:  # noqa: ARG001 - as ctypes.WinDLL
    raise OSError(errno.ENOSYS, "only Windows has it", "the Application log")
