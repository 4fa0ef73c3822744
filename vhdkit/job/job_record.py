"""A job as the plain values that programs read: the same keys in `job list`, in events, and for what its end calls."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vhdkit.job.job import Job, Wait


def record_of(job: Job, now: float | None = None) -> dict[str, Any]:
    """Return a job as plain values, at a moment: times in UTC, durations in seconds, sizes in bytes."""
    left = job.seconds_left
    return {
        "id": job.id,
        "state": job.state.plain,
        "job-state": int(job.state),
        "percent-complete": job.percent,
        "phase": job.phase,
        "bytes-done": job.bytes_done,
        "bytes-total": job.bytes_total,
        "rate": round(job.rate),
        "seconds-left": None if left is None else round(left, 1),
        "submitted": utc_iso(job.submitted),
        "started": utc_iso(job.started),
        "ended": utc_iso(job.ended),
        "elapsed": round(job.elapsed_at(time.time() if now is None else now), 3),
        "runs": job.runs,
        "pid": job.pid,
        "host": job.host,
        "user": job.user,
        "machine": job.machine,
        "sources": list(job.sources),
        "destination": job.destination,
        "undo": job.undo or None,
        "waits": None if job.wait is None else _wait_record(job.wait),
        "cancellable": job.is_cancellable,
        "rolled-back": job.rolled_back,
        "error": job.error or None,
        "error-class": job.error_class or None,
        "error-code": f"0x{job.error_code:08X}" if job.error_code else None,
    }


def utc_iso(seconds: float | None) -> str | None:
    """Return an instant as ISO 8601 in UTC, None for None."""
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def _wait_record(wait: Wait) -> dict[str, Any]:
    return {"reason": wait.reason.value, "for": list(wait.holders), "message": str(wait)}
