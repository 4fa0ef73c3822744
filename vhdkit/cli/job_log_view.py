"""What a job has said, for people and as JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vhdkit.findings import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def log_records(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the records of a job's log; a line that is none is left out: any program may have written it."""
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def log_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield what a job's log says, a line for each record."""
    for record in log_records(lines):
        words = [record.get(key, "") for key in ("time", "level", "event-id", "message")]
        yield printable("  ".join(str(word) for word in words))
