"""Instants as people and programs read them."""

from __future__ import annotations

import datetime as dt


def local_text(seconds: float | None) -> str:
    """Return an instant in this machine's time zone, "" for None."""
    if seconds is None:
        return ""
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def local_iso(seconds: float) -> str | None:
    """Return an instant as ISO 8601 in this machine's time zone, None where it is not known."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone().isoformat(timespec="seconds") if seconds else None
