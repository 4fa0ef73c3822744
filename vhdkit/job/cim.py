"""A job as Hyper-V's own: an Msvm_ConcreteJob, printed as PowerShell prints one, and read back.

What Hyper-V leaves empty and an administrator asks for (when it began, how long it has been at it) is filled. What it
has no property for stands behind the class's 36 as two of our own: Machine, and Disk, the file that is merged into.

**Source**: docs/reference/vhd.md 5.5 and 5.6.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from vhdkit.job.job import Job, JobState
from vhdkit.options import MergeRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Unknown:
    """What a property has that is not known yet; `UNKNOWN` is the only one."""


UNKNOWN = Unknown()

CimValue = str | int | bool | None | tuple[str | int, ...]

NAME = "Merge in Progress"
# PowerShell ends the print of an array here.
_MOST_ELEMENTS = 4
_UNSET = "16010101000000.000000-000"
_DERIVATION = ("CIM_ConcreteJob", "CIM_Job", "CIM_LogicalElement", "CIM_ManagedSystemElement", "CIM_ManagedElement")
_CLASS = "Msvm_ConcreteJob"
_NAMESPACE = r"root\virtualization"
# Of OperationalStatus: OK, error, stopped, completed; each with its word.
_STATUS = {
    JobState.COMPLETED: (17, "Completed"),
    JobState.TERMINATED: (10, "Stopped"),
    JobState.KILLED: (14, "Aborted"),
    JobState.EXCEPTION: (6, "Error"),
}
_OK = (2, "OK")
_NAMES = {
    JobState.NEW: "Merge Pending",
    JobState.SERVICE: "Merge Pending",
    JobState.COMPLETED: "Merge Completed",
    JobState.TERMINATED: "Merge Cancelled",
    JobState.KILLED: "Merge Interrupted",
    JobState.EXCEPTION: "Merge Failed",
}
_SAYS = {
    JobState.NEW: "Job is waiting",
    JobState.STARTING: "Job is starting",
    JobState.RUNNING: "Job is running",
    JobState.SUSPENDED: "Job is suspended",
    JobState.SHUTTING_DOWN: "Job is being terminated",
    JobState.COMPLETED: "Job is completed",
    JobState.TERMINATED: "Job was terminated",
    JobState.KILLED: "Job was interrupted",
    JobState.SERVICE: "Job is waiting to be begun",
}
# What hangs on the state alone; of one that has ended also whether it would still stop.
_BY_STATE = {
    "Caption",
    "Description",
    "ElementName",
    "HealthState",
    "JobState",
    "Name",
    "OperationalStatus",
    "StatusDescriptions",
}
# HealthState: 5 is OK, 25 a critical failure; ErrorCode has sixteen bits, and 32768 says "failed".
_HEALTHY, _CRITICAL = 5, 25
_FAILED = 32768
# RecoveryAction: 0 unknown, 4 run the job again, which goes on where it stopped.
_UNKNOWN, _RERUN = 0, 4


def properties(job: Job, now: float, server: str, *, is_strict: bool = False) -> dict[str, CimValue]:
    """Return what the object says, in its order: the system properties, the class's 36, then Machine and Disk.

    `now` is in Unix seconds, `server` the name of the host. Times are UTC. With `is_strict` the class's own alone.
    """
    path = f'{_CLASS}.InstanceID="{job.id}"'
    own = _own(job, now)
    if not is_strict:
        own |= {"Machine": job.machine, "Disk": job.destination}
    return {
        "__GENUS": 2,
        "__CLASS": _CLASS,
        "__SUPERCLASS": "CIM_ConcreteJob",
        "__DYNASTY": "CIM_ManagedElement",
        "__RELPATH": path,
        "__PROPERTY_COUNT": len(own),
        "__DERIVATION": _DERIVATION,
        "__SERVER": server,
        "__NAMESPACE": _NAMESPACE,
        "__PATH": rf"\\{server}\{_NAMESPACE}:{path}",
        **own,
    }


def of_state(state: JobState) -> dict[str, CimValue | Unknown]:
    """Return what all jobs in a state say alike; the other properties are `UNKNOWN`."""
    job = Job(id="", state=state, request=MergeRequest(child=""), submitted=0.0, changed=0.0)
    same = {*_BY_STATE, "Cancellable"} if state.is_finished else _BY_STATE
    return {name: value if name in same else UNKNOWN for name, value in properties(job, 0.0, "").items()}


def _own(job: Job, now: float) -> dict[str, CimValue]:
    name = _NAMES.get(job.state, NAME)
    number, word = _STATUS.get(job.state, _OK)
    has_failed = job.state is JobState.EXCEPTION
    error = job.error if has_failed else None
    return {
        "Cancellable": job.is_cancellable,
        "Caption": name,
        "DeleteOnCompletion": False,
        "Description": name,
        "ElapsedTime": interval(job.elapsed_at(now)),
        "ElementName": name,
        "ErrorCode": (job.error_code & 0xFFFF or _FAILED) if has_failed else 0,
        "ErrorDescription": error,
        "ErrorSummaryDescription": error,
        "HealthState": _CRITICAL if has_failed else _HEALTHY,
        "InstallDate": _UNSET,
        "InstanceID": job.id,
        "JobRunTimes": 1,
        "JobState": int(job.state),
        "JobStatus": error or (str(job.wait) if job.wait is not None else "") or _SAYS.get(job.state, "Job has failed"),
        "LocalOrUtcTime": 2,
        "Name": name,
        "Notify": None,
        "OperationalStatus": (number,),
        "OtherRecoveryAction": None,
        "Owner": job.user or None,
        "PercentComplete": job.percent,
        "Priority": 0,
        "RecoveryAction": _RERUN if job.state.is_resumable and not job.rolled_back else _UNKNOWN,
        "RunDay": 0,
        "RunDayOfWeek": 0,
        "RunMonth": 0,
        "RunStartInterval": interval(0),
        "ScheduledStartTime": _UNSET,
        "StartTime": moment(job.started),
        "Status": None,
        "StatusDescriptions": (word,),
        "TimeBeforeRemoval": interval(300),
        "TimeOfLastStateChange": moment(job.state_changed or job.changed),
        "TimeSubmitted": moment(job.submitted),
        "UntilTime": _UNSET,
    }


def text(jobs: Iterable[Job], now: float, server: str, *, is_strict: bool = False) -> str:
    """Return the jobs as PowerShell prints them: `Name : value`, the names of one width, a blank line between two."""
    return "\n".join(_listed(properties(job, now, server, is_strict=is_strict)) for job in jobs)


def _listed(values: Mapping[str, CimValue]) -> str:
    width = max(map(len, values))
    # Behind the colon of an empty value PowerShell leaves its blank too, which scripts look for.
    return "".join(f"{name:<{width}} : {shown(value)}\n" for name, value in values.items())


def shown(value: CimValue) -> str:
    """Return a value as PowerShell prints it, on one line.

    >>> shown((2,)), shown(True), shown(None), shown(("a", "b", "c", "d", "e"))
    ('{2}', 'True', '', '{a, b, c, d...}')
    """
    if value is None:
        return ""
    if isinstance(value, tuple):
        more = "..." if len(value) > _MOST_ELEMENTS else ""
        return "{" + ", ".join(map(_line, value[:_MOST_ELEMENTS])) + more + "}"
    return _line(value)


def _line(value: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def parse(printed: str) -> list[dict[str, str]]:
    """Return the objects of such a print, as a script reads it: name and value of each line, both as text."""
    objects: list[dict[str, str]] = []
    begins = True
    for line in printed.splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            begins = True
            continue
        if begins:
            objects.append({})
            begins = False
        objects[-1][name.strip()] = value.strip()
    return objects


def moment(seconds: float | None) -> str:
    """Return a moment as CIM writes it, in UTC; None is the one that stands for "not set".

    >>> moment(1236695130.123456)
    '20090310142530.123456+000'
    """
    if seconds is None:
        return _UNSET
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y%m%d%H%M%S.%f+000")


def interval(seconds: float) -> str:
    """Return a stretch of time as CIM writes it.

    >>> interval(300), interval(93784.5)
    ('00000000000500.000000:000', '00000001020304.500000:000')
    """
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days:08}{hour:02}{minute:02}{second:02}.{micro:06}:000"
