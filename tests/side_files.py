"""Taking a journal or a step file apart, as its reader does line by line."""

from __future__ import annotations

import json
from typing import Any

from vhdkit.journal.records import read_lines
from vhdkit.storage.memory import MemoryFolder


def taken_apart(raw: bytes) -> tuple[list[dict[str, Any]], int, str]:
    """Return the objects, of whatever kind, up to the first line that does not fit, its place, the last checksum."""
    found: list[dict[str, Any]] = []
    end, checksum = 0, ""
    with MemoryFolder({"/raw": raw}).open("/raw") as storage:
        lines = list(read_lines(storage))
    for line in lines:
        try:
            record = json.loads(line.text)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        found.append(record)
        end, checksum = line.end, line.checksum
    return found, end, checksum
