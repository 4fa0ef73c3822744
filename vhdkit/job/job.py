"""What is known about one merge as a job, as plain values: the states it goes through and what is computed from them.

The states are those of CIM_ConcreteJob, with plain names for people. Times are Unix seconds, sizes bytes.

**Source**: docs/reference/vhd.md 5.5; docs/explanation/architecture.md.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum, unique
from typing import TYPE_CHECKING, Any

from vhdkit.findings import printable, with_hint

if TYPE_CHECKING:
    from vhdkit.findings import Hint
    from vhdkit.options import MergeRequest

# Until the last name is changed a merge is not done, however many bytes are.
_ALMOST = 99


class JobState(IntEnum):
    """The state of a job, by CIM's numbers; `plain` is the word for it.

    >>> JobState.SUSPENDED.plain, JobState.KILLED.is_finished
    ('paused', True)
    """

    NEW = 2
    STARTING = 3
    RUNNING = 4
    SUSPENDED = 5
    SHUTTING_DOWN = 6
    COMPLETED = 7
    TERMINATED = 8
    KILLED = 9
    EXCEPTION = 10
    SERVICE = 11

    @property
    def plain(self) -> str:
        """The state in one word: what `job list` shows."""
        return _PLAIN[self]

    @property
    def is_finished(self) -> bool:
        """Whether its process is done with it."""
        return JobState.COMPLETED <= self <= JobState.EXCEPTION

    @property
    def is_running(self) -> bool:
        """Whether a process is at it, or paused in the midst of it: what Hyper-V calls a merge in progress."""
        return JobState.STARTING <= self <= JobState.SHUTTING_DOWN

    @property
    def is_resumable(self) -> bool:
        """Whether it ended before its end, so that it can go on."""
        return JobState.COMPLETED < self <= JobState.EXCEPTION


UNFINISHED = tuple(state for state in JobState if not state.is_finished)
_PLAIN = {
    JobState.NEW: "waiting",
    JobState.STARTING: "starting",
    JobState.RUNNING: "running",
    JobState.SUSPENDED: "paused",
    JobState.SHUTTING_DOWN: "stopping",
    JobState.COMPLETED: "completed",
    JobState.TERMINATED: "cancelled",
    JobState.KILLED: "interrupted",
    JobState.EXCEPTION: "failed",
    JobState.SERVICE: "pending",
}


@unique
class WaitReason(StrEnum):
    """Why a merge that is left to do is not being done."""

    MACHINE_RUNS = "machine-runs"
    OTHER_JOB = "other-job"
    LIMIT = "limit"
    NOT_BEGUN = "not-begun"
    CUT_OFF = "cut-off"
    CANCELLED = "cancelled"
    FAILED = "failed"


_REASONS = {
    WaitReason.MACHINE_RUNS: "the machine runs",
    WaitReason.OTHER_JOB: "another merge needs the same files",
    WaitReason.LIMIT: "as many merges as may run at once run on its file system",
    WaitReason.NOT_BEGUN: "it has not begun",
    WaitReason.CUT_OFF: "it was cut off",
    WaitReason.CANCELLED: "it was cancelled",
    WaitReason.FAILED: "it failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a merge waits for: `holders` are the processes or jobs, `hint` what lets it go on."""

    reason: WaitReason
    holders: tuple[str, ...] = ()
    hint: Hint | None = None

    def __str__(self) -> str:
        who = f" ({', '.join(self.holders)})" if self.holders else ""
        return printable(with_hint(_REASONS[self.reason] + who, self.hint))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A merge as a job, as it was when somebody looked.

    `id` is the one in the journal beside the destination. `request` is what was asked for, so that the job can be begun
    again. `sources` are leaf first; `files` are all that the job touches, `written` those of them that it changes;
    paths are absolute. `machine` is the name given at the start, or that of the base. `bytes_total` is
    0 until it is planned; `rate` is in bytes a second, of late; `elapsed` the seconds that it was being worked at, over
    all its `runs`, up to `changed`, when this was written; its state is so since `state_changed`. `pid` of `host` is at
    it, or was; `born` tells that process from a later one of the same number. `error` is what went wrong, `error_class`
    and `error_code` (as Windows has it, 0 for none) say which kind. `identities` has the unique ids, in hexadecimal, of
    the images that it was begun with, by their paths. `wait` is why it is not being worked at though it is left to do,
    None where that is not so or was not asked; no list keeps it.
    """

    id: str
    state: JobState
    request: MergeRequest
    sources: tuple[str, ...] = ()
    destination: str = ""
    files: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    machine: str = ""
    phase: str = ""
    percent: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    rate: float = 0.0
    submitted: float
    started: float | None = None
    ended: float | None = None
    changed: float
    state_changed: float = 0.0
    elapsed: float = 0.0
    runs: int = 0
    pid: int = 0
    born: str = ""
    host: str = ""
    user: str = ""
    error: str = ""
    error_class: str = ""
    error_code: int = 0
    undo: str = ""
    rolled_back: bool = False
    identities: dict[str, str] = field(default_factory=dict)
    wait: Wait | None = None

    @property
    def is_cancellable(self) -> bool:
        """Whether it would still stop: not before a process has it, while it changes names, or once it has ended."""
        is_nobodys = self.wait is not None and not self.pid
        return self.state < JobState.SHUTTING_DOWN and self.phase != "finishing" and not is_nobodys

    @property
    def seconds_left(self) -> float | None:
        """How long the rest of the bytes takes at the present rate; None while that cannot be told."""
        if self.state is not JobState.RUNNING or self.rate <= 0:
            return None
        return max(0, self.bytes_total - self.bytes_done) / self.rate

    def elapsed_at(self, now: float) -> float:
        """Return the seconds that it was being worked at until `now`."""
        is_moving = self.state in {JobState.STARTING, JobState.RUNNING, JobState.SHUTTING_DOWN}
        return self.elapsed + (max(0.0, now - self.changed) if is_moving else 0.0)

    def advanced(self, now: float, state: JobState, **changes: Any) -> Job:  # noqa: ANN401 - fields of the job
        """Return the job as it is now: time counts while it is worked at, and percent never goes back."""
        is_over = state.is_finished
        after = replace(self, state=state, elapsed=self.elapsed_at(now), changed=now, **changes)
        percent = percent_of(after.bytes_done, after.bytes_total)
        percent = 100 if state is JobState.COMPLETED else max(min(_ALMOST, self.percent), percent)
        since = self.state_changed if state is self.state and self.state_changed else now
        rate = 0.0 if is_over or state is JobState.SUSPENDED else after.rate
        return replace(after, percent=percent, ended=now if is_over else None, rate=rate, state_changed=since)

    def at(self, bytes_done: int, bytes_total: int) -> Job:
        """Return the job with other figures of how far it is, from which it may also go back."""
        percent = percent_of(bytes_done, bytes_total)
        return replace(self, bytes_done=bytes_done, bytes_total=bytes_total, percent=percent)


def percent_of(bytes_done: int, bytes_total: int) -> int:
    """Return how far a merge is that is not complete: 99 at most, and 0 before its bytes are known."""
    return min(_ALMOST, 100 * bytes_done // bytes_total) if bytes_total else 0


def share_a_file(one: Job, other: Job) -> bool:
    """Whether two jobs cannot run side by side: one changes a file that the other needs."""
    return bool(set(one.written) & set(other.files) or set(other.written) & set(one.files))


def job_id(text: str = "") -> str:
    """Return the id that a journal gives, as ids are written here; a new one if it gives none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        # Whoever merges in Python may have called it anything.
        return str(uuid.uuid5(uuid.NAMESPACE_OID, text) if text else uuid.uuid4())
