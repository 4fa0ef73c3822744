"""What a check finds in one file of any format: findings, counted, and space that nothing refers to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhdkit.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vhdkit.disk.image import FileSummary
    from vhdkit.findings import Rule


# A damaged table may break a rule in every entry: so many are told one by one, the others are counted.
MAX_LISTED = 10


@dataclass(slots=True)
class Tally:
    """Findings of one file: the first of each kind one by one, the others as numbers."""

    path: str
    findings: list[Finding] = field(default_factory=list)
    unlisted: dict[Rule, tuple[Level, int]] = field(default_factory=dict)
    _listed: dict[tuple[Rule, Level], int] = field(default_factory=dict)

    def add(self, corruption: Rule, level: Level, message: str, offset: int | None = None) -> None:
        """Note one thing."""
        self.add_many(corruption, level, 1, lambda _: (message, offset))

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take over what was found elsewhere, of which there is little."""
        self.findings.extend(findings)

    def add_many(
        self,
        corruption: Rule,
        level: Level,
        count: int,
        tell: Callable[[int], tuple[str, int | None]],
    ) -> None:
        """Note `count` things, of which `tell(index)` gives message and offset; it is called for few of them."""
        listed = self._listed.get((corruption, level), 0)
        for index in range(min(count, MAX_LISTED - listed)):
            message, offset = tell(index)
            self.findings.append(
                Finding(corruption=corruption, path=self.path, message=message, level=level, offset=offset)
            )
            listed += 1
            count -= 1
        self._listed[corruption, level] = listed
        if count:
            self.unlisted[corruption] = (level, self.unlisted.get(corruption, (level, 0))[1] + count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Space that nothing refers to: how many stretches, and their bytes."""

    stretches: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """What was found in one file; `metadata` is None if it says nothing about itself that can be read."""

    tally: Tally
    leaks: Leaks
    metadata: FileSummary | None
