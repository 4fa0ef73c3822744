"""What is said of files: how bad it is, which rule it breaks, and what was tried as a parent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Rule(StrEnum):
    """The base of the formats' enums of corruption: one member per rule that a file can break."""

    @property
    def windows_code(self) -> int | None:
        """The code that Windows has for it; None if it has none."""
        return None


class Level(StrEnum):
    """How bad a finding is: an error makes reading on a guess, a warning does not, information is neither."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a file that breaks a rule or is odd; `offset` is where in the file, if it is in one place."""

    corruption: Rule
    path: str
    message: str
    level: Level = Level.WARNING
    offset: int | None = None

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that might have been the parent, where its name came from, and why it was not taken."""

    path: str
    origin: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path} ({self.origin}): {self.reason}")


def printable(text: str) -> str:
    """Return text with control characters escaped: names inside an image are untrusted."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
